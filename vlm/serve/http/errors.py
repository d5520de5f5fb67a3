"""Errors as clients of OpenAI's API read them: ``{"error": {"message", "type", "param", "code"}}`` and a status.

A message never holds a path of this machine, a traceback, or more of a request than its reader sent.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vlm.common.errors import BusyError, ConfigError, DataError, PromptError, UserError, printable
from vlm.inference.remote.client import RemoteError

log = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Status -> type; others are ``invalid_request_error``, from 500 on ``server_error``."""

LONGEST = 1000
"""Characters of a message."""

_PATH = re.compile(r"(?<![\w./:<])(?:/[\w.+-]+){2,}/?")


class ApiError(UserError):
    """An error with all that a client is told.

    Attributes:
        status: of HTTP.
        code: what programs compare, such as ``model_not_found``.
        param: the field of the request at fault.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


def api_error(error: BaseException, param: str | None = None) -> ApiError:
    """What a client is told of an error: of a fault of its own the message, of any other that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(str(error), status=429, code="rate_limit_exceeded", retry_after=max(1.0, error.retry_after))
    if isinstance(error, RemoteError):
        log.error("%s", error)
        text = "the vLLM server that writes the answers of this one gave none"
        return ApiError(text, status=502, code="upstream_error", retry_after=5)
    if isinstance(error, DataError | PromptError | ConfigError) or type(error) is UserError:
        return ApiError(str(error), param=param)
    if isinstance(error, UserError):  # of the model: a client cannot mend it
        log.error("%s", error)
        return ApiError("the model computed no answer", status=500, code="model_error")
    return ApiError("internal error; the log of the server has the reason", status=500, code="internal_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    text = _PATH.sub("...", printable(str(error)).replace("\n  fix: ", "; "))
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return {"error": {"message": text, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response of an error, with Retry-After where waiting helps."""
    more = dict(headers or {})
    if error.retry_after is not None:
        more["Retry-After"] = str(math.ceil(error.retry_after))
    return JSONResponse(error_body(error), error.status, more)


def add_handlers(app: FastAPI) -> None:
    """Every error of ``app`` in this form."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return error_response(api_error(error))

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(invalid(error.errors(), request.headers.get("content-type", "")))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        texts = {404: "this address does not exist", 405: f"{request.method} is not allowed here"}
        found = ApiError(texts.get(error.status_code, str(error.detail)), status=error.status_code)
        return error_response(found, error.headers)

    app.add_exception_handler(UserError, ours)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)


def invalid(problems: Sequence[dict[str, Any]], content_type: str) -> ApiError:
    """The error for a body that is not of the form that an endpoint takes: the most specific of the problems."""
    first: dict[str, Any] = max(problems, key=lambda problem: len(problem["loc"]))
    media_type = content_type.partition(";")[0].strip().lower()
    if len(first["loc"]) <= 1 and not (media_type == "application/json" or media_type.endswith("+json")):
        shown = f"its Content-Type is {media_type[:100]!r}" if media_type else "it has no Content-Type"
        return ApiError(f"the body must be JSON, but {shown}; send Content-Type: application/json", status=415)
    if first.get("type") == "json_invalid":
        return ApiError(f"the body is not valid JSON ({first['ctx']['error']} at character {first['loc'][-1]})")
    place = _place(list(first["loc"][1:]))[:200]
    return ApiError(f"{place or 'the body'}: {first['msg']}", param=place or None)


def _place(steps: list[Any]) -> str:
    """The field that a location of pydantic's names, without the members of unions in it."""
    kept: list[str] = []
    for before, step in zip([None, *steps], steps):
        is_number = isinstance(step, int)
        is_kind = isinstance(before, int) and step in ("text", "image_url", "video_url")
        if is_number or not (is_kind or "[" in step or step in ("str", "int")):
            kept.append(str(step))
    return ".".join(kept)
