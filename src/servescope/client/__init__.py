"""The load client: the only code that touches sockets and clocks while a load is driven."""
