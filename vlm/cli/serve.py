"""``vlm serve``: one or several models over HTTP, with the API of OpenAI's clients."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import textwrap
from typing import TYPE_CHECKING, Any

from vlm.cli.options import add_listed, device_of, options_of
from vlm.common.errors import UserError
from vlm.common.registry import register_command
from vlm.config.options import typed
from vlm.config.schema import Report, read
from vlm.serve.http.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm.inference.engine import Engine

VLLM_KEY = "VLLM_API_KEY"
"""Variable with the key of the vLLM server, as vLLM itself reads it."""
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@register_command("serve")
class Serve:
    """Serve one or several models over HTTP, with the API of OpenAI's clients.

    examples:
      vlm serve output/quickstart/stage2
      vlm serve cats=output/cats dogs=output/dogs --port 8080 --limit tokens=512 waiting=64
      vlm serve output/mine --host 0.0.0.0 --api-keys keys.txt --options run.serving.max_batch=16
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The arguments of ``vlm serve``; those of ``--limit`` are the fields of ``Limits``."""
        add_listed(parser, "serve", "options", "model")
        parser.epilog = f"{parser.epilog}\n\nlimits (--limit KEY=VALUE ...):\n{limits_text()}"

    def main(self, args: argparse.Namespace) -> int:
        """Serve until a signal; the exit code. Raises UserError: an unusable model, option, address or file of keys."""
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"vlm serve needs {', '.join(missing)}", fix="pip install 'vlm-compose[serve]'")
        from vlm.serve.feedback.folder import check_folder
        from vlm.serve.http import server
        from vlm.serve.http.fetch import Fetcher
        from vlm.serve.http.guard import LOOPBACK_NAMES
        from vlm.serve.http.keys import VARIABLE, Keys
        from vlm.serve.http.models import load_models, named_runs

        limits, runs, keys = limits_of(args.limit), named_runs(args.runs), Keys.load(args.api_keys)
        if not (keys or args.no_keys or server.is_loopback(args.host)):
            raise UserError(
                f"--host {args.host} lets other machines use the models, and no API keys are given",
                fix=f"--api-keys FILE (or the variable {VARIABLE}), or --no-keys if something in front checks them",
            )
        if keys and args.no_keys:
            raise UserError("--no-keys and API keys exclude each other", fix="leave one out")
        if args.feedback and not args.page:
            raise UserError("--feedback is what visitors of the chat page say of answers", fix="add --page")
        if args.feedback:
            check_folder(args.feedback)
        listening = server.listen(args.host, args.port)  # before the models are loaded, which may take minutes
        models = load_models(runs, engine_of(args))
        narrow = args.allow_host or (server.is_loopback(args.host) and not keys)
        app = server.Assembled(
            models,
            limits,
            keys,
            Fetcher(args.allow_media_host, limits),
            hosts=[*LOOPBACK_NAMES, *args.allow_host] if narrow else (),
            page_host=args.host if args.page else None,
            feedback=args.feedback,
            access_log=not args.no_access_log,
        )
        port = listening.getsockname()[1]
        return server.run(app, listening, limits, started(args.host, port, list(models.engines), limits, len(keys)))


def limits_of(given: Sequence[str]) -> Limits:
    """The limits of ``--limit KEY=VALUE ...``. Raises ConfigError: an unknown one, or a value outside its range."""
    report, values = Report(), {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--limit {text}: expected KEY=VALUE", fix="e.g. --limit tokens=512")
        values[key] = typed(value)
    limits = read(Limits, values, (), report)
    report.raise_if_any("--limit")
    return limits


def limits_text() -> str:
    """The limits with their defaults and meanings, a line or two for each."""
    lines = []
    for field in dataclasses.fields(Limits):
        head = f"  {field.name}={field.default:g}"
        about = textwrap.wrap(field.metadata["help"], 88)
        lines += [f"{head:<24}{about[0]}", *(f"{'':<24}{more}" for more in about[1:])]
    return "\n".join(lines)


def engine_of(args: argparse.Namespace) -> Callable[[str, list[Engine]], Engine]:
    """What loads an engine, given those before it. Raises UserError: arguments that contradict each other."""
    if (args.engine == "own") != (args.address is None):
        fix = "--engine vllm --address http://127.0.0.1:8100" if args.engine == "vllm" else "add --engine vllm"
        raise UserError("--engine vllm and --address go together", fix=fix)
    options, device = options_of(args), device_of(args)
    more: dict[str, Any] = {"options": options, "trust": args.trust, "allow_random": args.allow_random}

    def load(run: str, others: list[Engine]) -> Engine:
        if args.engine == "vllm":
            from vlm.inference.remote import connect

            return connect(run, args.address, device, api_key=os.environ.get(VLLM_KEY), **more)
        from vlm.serve.http.models import load_beside

        return load_beside(run, others, device, **more)

    return load


def started(host: str, port: int, models: Sequence[str], limits: Limits, keys: int) -> str:
    """What is printed when the server accepts requests."""
    name = f"[{host}]" if ":" in host else host
    return "\n".join(
        [
            f"serving {', '.join(models)} at http://{name}:{port}/v1",
            f"  {keys} API key{'s' if keys > 1 else ''}" if keys else "  no API key needed",
            f"  up to {limits.tokens} tokens an answer, {limits.body_mib} MiB and {limits.images} images a request, "
            f"{limits.waiting} questions waiting; all: vlm serve --help",
            "  Ctrl-C or SIGTERM finishes accepted requests and ends",
        ]
    )
