"""GET /models: what may be named as a message's model."""

from aiohttp import web

from groqchat.errors import CompletionError
from groqchat.http.endpoint import Notes, endpoint
from groqchat.http.state import catalog_of, settings_of
from groqchat.models import ModelInfo, ModelsAnswer

routes = web.RouteTableDef()


@endpoint(routes, "GET", "/api/groq-chat/models", notes=Notes(errors=(CompletionError,)))
async def list_models(request: web.Request) -> ModelsAnswer:
    """Return the models that may be used, as Groq listed them last."""
    catalog = catalog_of(request.app)
    models = await catalog.models()
    return ModelsAnswer(
        models=[ModelInfo.model_validate(model) for model in models],
        default_model=settings_of(request.app).groq_default_model,
        refreshed_at=catalog.refreshed_at,
    )
