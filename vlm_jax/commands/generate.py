"""`vlm generate`."""

import argparse
from typing import Any

from vlm_jax.commands.common import add_command

_DESCRIPTION = """The answer appears as it is written. Pictures may be several; a prompt may be repeated for several
turns of one dialogue. Greedy unless --temperature is above 0.

  vlm generate --model runs/quickstart --image picture.png --prompt "Какого цвета фигура?"
  vlm generate --model runs/quickstart --image picture.png --prompt "what shape is present?" --max-new-tokens 8"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(subparsers, "generate", "Ask a model about pictures.", _DESCRIPTION)
    parser.add_argument(
        "--model", required=True, metavar="REF", help="a workdir or a step directory checkpoints/STAGE/STEP"
    )
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="picture; repeat for several")
    parser.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="question; repeat for several turns"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer, in tokens (64)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 = greedy (0)")
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0 = all (0)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of mass P (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Streams the answers."""
    from data_pipelines.images import BadImage
    from vlm_jax.checkpoints.reference import load_model
    from vlm_jax.errors import UserError
    from vlm_jax.generation import Chat, Engine, Sampler

    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p)
    model = load_model(arguments.model)
    engine = Engine(model.config, model.params, model.processor)
    chat = Chat(engine, max_new_tokens=arguments.max_new_tokens, sampler=sampler, seed=arguments.seed)
    try:
        for turn, prompt in enumerate(arguments.prompt):
            for piece in chat.stream(prompt, arguments.image if turn == 0 else ()):
                print(piece, end="", flush=True)
            print()
    except BadImage as error:
        raise UserError(f"--image: {error}; give a picture such as a PNG or JPEG file") from None
