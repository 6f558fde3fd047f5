"""The paths of OpenAI's API, which Groq's API, the mock Groq server and this service share."""

OPENAI_PREFIX = "/openai/v1"
COMPLETIONS_PATH = f"{OPENAI_PREFIX}/chat/completions"
MODELS_PATH = f"{OPENAI_PREFIX}/models"
# The ids of some models contain slashes.
MODEL_PATH = f"{MODELS_PATH}/{{model:.+}}"
