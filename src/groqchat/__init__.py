"""An async chat service that answers through Groq and stores every message in Redis."""

__version__ = "0.1.0"
