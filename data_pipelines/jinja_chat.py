"""Chat templates as Hugging Face checkpoints bring them: a Jinja program that writes a conversation as text.

The program is somebody else's, so it runs in a sandbox: it cannot change what it is given or reach what is beneath.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

Message = Mapping[str, Any]
"""{'role': …, 'content': text, or a list of {'type': 'image'} and {'type': 'text', 'text': …}}."""


class _Refused(jinja2.TemplateError):
    """The template called raise_exception: it does not take this conversation."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks what the model wrote; here the loss is found another way."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def write_chat(
    template: str,
    messages: Sequence[Message],
    *,
    names: Mapping[str, str],
    add_generation_prompt: bool = False,
    date: str = "",
) -> str:
    """A conversation as the template writes it.

    Args:
        template: the Jinja program.
        messages: the conversation.
        names: bos_token, eos_token, … by their text, which templates may use.
        add_generation_prompt: open the assistant's turn at the end.
        date: for templates that write the date: YYYY-MM-DD; today where empty.

    Raises:
        BadRecord: if the template refuses the conversation (roles that do not take turns, say).
        UserError: if the template is not valid, fails, or the date is not one.
    """
    program = _compiled(template, date)
    try:
        return program.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **names,
        )
    except _Refused as error:
        raise BadRecord(f"the chat template refuses the conversation: {error.message}") from None
    except Exception as error:  # somebody else's program can fail in any way
        raise UserError(f"the chat template fails: {_one_line(error)}; mend it or choose another") from None


@functools.lru_cache(maxsize=64)
def _compiled(template: str, date: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _clock(date).strftime if date else _now
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is not valid Jinja: {_one_line(error)}; mend it") from None


def _clock(date: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(date)
    except ValueError:
        raise UserError(f"chat template date '{date}' is not a date: give it as 2026-01-31") from None


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> NoReturn:
    raise _Refused(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < and > as escapes for web pages.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
