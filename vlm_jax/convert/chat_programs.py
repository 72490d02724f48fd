"""Templates as Jinja programs, for transformers and whoever else reads a Hugging Face directory."""

import json

from data_pipelines.template import ChatTemplate, PrefixTemplate, Processor, Template, TemplateConfig
from data_pipelines.tokenizers import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import PromptLayout

NO_TEMPLATE = (
    "{{ raise_exception('this model brings no chat template: give it running text, or choose its instruct version') }}"
)
"""Stands in for the chat template of a base model, which takes running text only."""

IMAGE_BEFORE, IMAGE_AFTER = "<fake_token_around_image><global-img>", "<fake_token_around_image>"

SURROUNDED = {
    "idefics2": (IMAGE_AFTER, IMAGE_AFTER),
    "idefics3": (IMAGE_BEFORE, IMAGE_AFTER),
    "smolvlm": (IMAGE_BEFORE, IMAGE_AFTER),
}
"""Architectures whose processor puts tokens of its own before and after a picture's."""

JOINED = ("idefics2",)
"""Those that put them once between two pictures that touch (`ChatTemplate.image_joined`)."""

PICTURES_FIRST = ("blip-2", "instructblip")
"""Those that know no turns, and put pictures first, before <bos> too."""

_PICTURES_FIRST = """{%- for message in messages if message['content'] is not string -%}
  {%- for part in message['content'] if part['type'] == 'image' -%}{{- IMAGE -}}{%- endfor -%}
{%- endfor -%}
{{- BOS -}}
{%- for message in messages -%}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endfor -%}
"""

_CONTROL = """{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['content'] is not string -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- IMAGE -}}{%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}{{- USER -}}
  {%- elif message['role'] == 'assistant' -%}{{- ASSISTANT -}}
  {%- else -%}{{- raise_exception('roles are user and assistant') -}}
  {%- endif -%}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
  {{- END -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT -}}{%- endif -%}
"""

_PICTURES_AS_TEXT = """{%- set rewritten = namespace(messages=[], text='') -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}{%- set rewritten.text = message['content'] -%}
  {%- else -%}
    {%- set rewritten.text = '' -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}{%- set rewritten.text = rewritten.text + IMAGE -%}
      {%- elif part['type'] == 'text' -%}{%- set rewritten.text = rewritten.text + part['text'] -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set rewritten.messages = rewritten.messages + [{'role': message['role'], 'content': rewritten.text}] -%}
{%- endfor -%}
{%- set messages = rewritten.messages -%}
"""


def chat_program(template: Template, tokenizer: Tokenizer, surrounds_pictures: bool = False) -> str:
    """The Jinja program that writes what `template` lays out; '' for a PrefixTemplate, which has none.

    Args:
        template: of the processor.
        tokenizer: of the processor.
        surrounds_pictures: the reader's processor puts the text before and after a picture itself (Idefics 3).

    Raises:
        UserError: if a template that puts text around pictures leaves writing them to its own program.
    """
    if isinstance(template, TemplateConfig):
        names = {
            "IMAGE": tokenizer.image_id,
            "USER": tokenizer.user_id,
            "ASSISTANT": tokenizer.assistant_id,
            "END": tokenizer.end_id,
        }
        texts = {name: "" if id is None else tokenizer.id_to_piece(id) for name, id in names.items()}
        return _filled(_CONTROL, texts)
    if not isinstance(template, ChatTemplate):
        return ""
    around = ("", "") if surrounds_pictures else (template.image_before, template.image_after)
    if template.contents == "list":
        if any(around):
            raise UserError(
                "the chat template writes pictures itself and image_before or image_after puts text around them, which "
                "only Idefics 3's processor can do outside; put the text into the template"
            )
        return template.jinja
    if tokenizer.image_id is None:
        return template.jinja
    return _filled(_PICTURES_AS_TEXT, {"IMAGE": template.image.join(around)}) + template.jinja


def pictures_first(tokenizer: Tokenizer) -> str:
    """The Jinja program of `PICTURES_FIRST`: what is said, one after another, behind all pictures."""
    ids = {"IMAGE": tokenizer.image_id, "BOS": tokenizer.bos_id if tokenizer.adds_bos else None}
    return _filled(_PICTURES_FIRST, {name: "" if id is None else tokenizer.id_to_piece(id) for name, id in ids.items()})


def layout_of(processor: Processor) -> PromptLayout:
    """What a model must know of its processor's template to be written for others.

    Raises:
        UserError: if the tokenizer has no token for a picture's place.
    """
    template, token = processor.template, processor.tokenizer.image_id
    if token is None:
        raise UserError("the tokenizer has no token for a picture's place; add one by with_image_token")
    if isinstance(template, PrefixTemplate):
        return PromptLayout(token, "prompt", template.first_position)
    first = template.first_position if isinstance(template, ChatTemplate) else 0
    return PromptLayout(token, "images" if template.bidirectional_images else "none", first)


def _filled(program: str, texts: dict[str, str]) -> str:
    """Puts texts in place of capital names, as literals of the program."""
    for name, text in texts.items():
        program = program.replace(name, json.dumps(text, ensure_ascii=False))
    return program
