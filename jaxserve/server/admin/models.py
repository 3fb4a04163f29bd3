"""GET /v1/models and /v1/models/{id}: the models of this server."""

from starlette.requests import Request
from starlette.responses import Response

from jaxserve.server.http.answer import json_response
from jaxserve.server.models import ServedModel
from jaxserve.server.schema.answers import Model, ModelList
from jaxserve.server.state import server_state


async def list_models(http: Request) -> Response:
    """Answer with all models, one entry per name."""
    models = server_state(http).router.models
    return json_response(ModelList([_entry(m, name) for m in models for name in m.names]))


async def get_model(http: Request) -> Response:
    """Answer with one model. Its id may contain slashes."""
    name: str = http.path_params["model_id"]
    return json_response(_entry(server_state(http).router.model(name), name))


def _entry(model: ServedModel, name: str) -> Model:
    return Model(id=name, created=model.created, root=model.name, max_model_len=model.max_model_len)
