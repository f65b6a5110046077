"""NeuroWeaver: dealership language models, from a dealership's data to answers."""

__version__ = "0.1.0"
