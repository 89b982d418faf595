"""servescope: measure, explain and predict how well large language models are served."""

__version__ = "0.1.0"
