"""The sandbox that chat templates run in."""

import datetime

import pytest

from data_pipelines.jinja_chat import write_chat
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

MESSAGES = [{"role": "user", "content": "<b>что?"}]


def write(template, **options):
    return write_chat(template, MESSAGES, names={"bos_token": "<s>"}, **options)


def test_templates_find_what_the_field_promises_them():
    assert write("{{ bos_token }}{{ messages[0].role }}{{ add_generation_prompt }}") == "<s>userFalse"
    assert write("{{ messages[0].content | tojson }}") == '"<b>что?"'
    assert write("{% if tools is none and documents is none %}plain{% endif %}") == "plain"
    assert write("{% for m in messages %}\n  {% generation %}{{ m.role }}{% endgeneration %}\n{% endfor %}") == "user"
    assert write("{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "01"
    assert write("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)
    assert write("{{ strftime_now('%d %b %Y') }}", date="2024-07-26") == "26 Jul 2024"


def test_a_refusal_is_a_bad_record():
    with pytest.raises(BadRecord, match="refuses the conversation: roles must alternate"):
        write("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ messages[7].content }}", "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages[0].update({'role': 'x'}) }}", "SecurityError"),
        ("{{ range(999999999) | list }}", "OverflowError"),
        ("{{ undefined_thing.field }}", "undefined"),
    ],
)
def test_what_fails_or_reaches_out_is_the_users_error_in_one_line(template, said):
    with pytest.raises(UserError, match=said) as caught:
        write(template)
    assert "\n" not in str(caught.value)


def test_a_date_that_is_none_is_refused():
    with pytest.raises(UserError, match="date 'tomorrow' is not a date"):
        write("x", date="tomorrow")
