"""The schedulers of the engines that people serve with: one published policy a file."""
