"""GET /models: the models that a chat request may name."""

from aiohttp import web

from groqchat.errors import CompletionError, Overloaded, ShuttingDown
from groqchat.http.endpoint import RouteDocs, endpoint
from groqchat.http.state import Services
from groqchat.models import ModelInfo, ModelsResponse

routes = web.RouteTableDef()


@endpoint(
    routes,
    "GET",
    "/api/groq-chat/models",
    docs=RouteDocs(errors=(CompletionError, Overloaded, ShuttingDown)),
)
async def list_models(_request: web.Request, services: Services) -> ModelsResponse:
    """List the available models."""
    with services.limiter:
        models = await services.catalog.models()
    return ModelsResponse(
        models=[ModelInfo.model_validate(model) for model in models],
        default_model=services.settings.groq_default_model,
        refreshed_at=services.catalog.refreshed_at,
    )
