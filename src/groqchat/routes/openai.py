"""The OpenAI-compatible endpoints: chat completions, and the list of models."""

from aiohttp import web

from groqchat.errors import (
    CompletionError,
    IdempotencyKeyReused,
    ModelNotFound,
    Overloaded,
    ShuttingDown,
    StorageError,
    TurnLost,
)
from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.state import Services
from groqchat.openai_paths import COMPLETIONS_PATH, MODEL_PATH, MODELS_PATH
from groqchat.services.openai.models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ModelListResponse,
    ModelPath,
    ModelResponse,
    OpenAIErrorResponse,
    OpenAIHeaders,
)
from groqchat.services.openai.responses import ProxyResponse

routes = web.RouteTableDef()

ERRORS = (CompletionError, Overloaded, ShuttingDown)


@endpoint(
    routes,
    "POST",
    COMPLETIONS_PATH,
    docs=RouteDocs(
        errors=(*ERRORS, IdempotencyKeyReused, StorageError, TurnLost),
        error_model=OpenAIErrorResponse,
        stream="Groq's chunks, forwarded unchanged.",
        forwards_upstream_errors=True,
    ),
)
async def complete(
    request: web.Request,
    services: Services,
    headers: OpenAIHeaders,
    body: ChatCompletionRequest,
) -> ChatCompletionResponse | web.StreamResponse:
    """Forward a chat completion to Groq, within a session if `X-Session-Id` names one."""
    # The raw body is forwarded, with every field that the model does not declare.
    raw_body = await request.read()
    key = headers.idempotency_key
    if not body.stream and key is None:
        with services.limiter:
            reply = await services.openai.complete(raw_body, body, headers.session_id)
        return _whole(reply)
    with services.limiter.following():
        if key is None:
            reply = await services.openai.complete(raw_body, body, headers.session_id)
        else:
            complete = services.keyed_completions.complete
            reply = await complete(key, raw_body, body, headers.session_id)
        if reply.events is None:
            return _whole(reply)
        try:
            return await services.event_streams.send(request, reply.events, headers=reply.headers)
        finally:
            reply.close()


def _whole(reply: ProxyResponse) -> web.Response:
    return web.Response(
        body=reply.body, status=reply.status, headers=dict(reply.headers), content_type=JSON
    )


@endpoint(routes, "GET", MODELS_PATH, docs=RouteDocs(errors=ERRORS))
async def list_models(_request: web.Request, services: Services) -> ModelListResponse:
    """List the available models in OpenAI's format."""
    with services.limiter:
        models = await services.catalog.models()
    return ModelListResponse(data=[ModelResponse.model_validate(model) for model in models])


@endpoint(routes, "GET", MODEL_PATH, docs=RouteDocs(errors=(*ERRORS, ModelNotFound)))
async def retrieve_model(
    _request: web.Request, services: Services, path: ModelPath
) -> ModelResponse:
    """Return a model in OpenAI's format."""
    with services.limiter:
        return ModelResponse.model_validate(await services.catalog.find(path.model))
