"""An async chat service over Groq that keeps every message in Redis."""

__version__ = "0.1.0"
