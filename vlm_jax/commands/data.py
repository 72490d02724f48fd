"""`vlm data …`: puts the commands about data together; each of the modules named here adds its own."""

from typing import Any

from vlm_jax.commands import data_look, data_prepare, data_quarantine, data_tokenizer, data_web

_PREPARE = """The corpora that `vlm data fetch` has brought, or raw web pages, become shards that any stage can read."""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommands.

    The modules add theirs to `vlm data` and to `vlm data prepare`: their `add_parsers` takes both.
    """
    data = subparsers.add_parser("data", help="Fetch and prepare data, and look at what the model will see.")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="Make training data of corpora or web pages.", description=_PREPARE)
    prepare_commands = prepare.add_subparsers(dest="prepare_command", required=True, metavar="COMMAND")
    for module in (data_look, data_tokenizer, data_quarantine, data_prepare, data_web):
        module.add_parsers(commands, prepare_commands)
