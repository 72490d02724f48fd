"""`prepare_web`: one run from inputs to a finished directory, or nothing that looks like one."""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

import data_pipelines.prepare.web.html
import data_pipelines.prepare.web.html_encoding
import data_pipelines.records
from data_pipelines.manifest import (
    MANIFEST,
    Manifest,
    ShardFile,
    code_hash,
    config_hash,
    is_intact,
    library_versions,
    read_manifest,
    write_manifest,
)
from data_pipelines.optional import need
from data_pipelines.prepare.web.config import WebConfig, plain_config
from data_pipelines.prepare.web.contamination import build_index, open_set
from data_pipelines.prepare.web.funnel import funnel_table
from data_pipelines.prepare.web.inputs import Task, files_below, find_tasks, input_facts, task_key
from data_pipelines.prepare.web.report import write_report
from vlm_jax.errors import RunError, UserError

FUNNEL, REPORT = "funnel.json", "report.html"
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""Beam's runner in Python, in this process. The one that Beam would choose by itself downloads a program first."""

_WORK, _RUN = ".partial", "run.json"
_LIBRARIES = ("apache-beam", "datasketch", "imagehash", "py3langid", "selectolax", "warcio")

Progress = Callable[[str, int, int], None]
"""Called now and then with (what is going on, how many are done, of how many)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    manifest: Manifest
    funnel: dict[str, Any]
    """See `funnel.funnel_table`; also in funnel.json."""
    skipped: bool
    """The very same output was there already, and whole."""


def prepare_web(
    inputs: Sequence[str],
    output: str,
    config: WebConfig,
    evaluation: Sequence[str] = (),
    beam_flags: Sequence[str] = (),
    progress: Progress = lambda what, done, of: None,
) -> Outcome:
    """Turns raw pages into shards of interleaved records, with a manifest, funnel.json and report.html.

    The same inputs, config, evaluation sets and code give the same shards, byte by byte. If they are there already and
    whole, nothing is done. A run that was killed leaves no manifest; the next one takes up the pages that it had read.

    Args:
        inputs: WARC files (.warc, .warc.gz) and directories with HTML files or WARC files.
        output: A directory, which no other process writes.
        config: The rules.
        evaluation: Paths of sets that must not be met in training, in any format that sources read.
        beam_flags: Options of Apache Beam, such as --runner=DataflowRunner; by default all runs in this process.
        progress: Told what is going on.

    Raises:
        UserError: if an input, the output directory, an evaluation set or a flag is wrong.
        RunError: if the runner fails.
    """
    _import_beam()
    options = _options(beam_flags)
    tasks = find_tasks(inputs)
    code = _code()
    facts = input_facts(tasks)
    evaluated = _digest([[path, _state_of_set(path)] for path in sorted(evaluation)])
    described = {
        "web": plain_config(config),
        "inputs": _digest([fact[:2] for fact in facts]),
        "evaluation": {"paths": len(evaluation), "state": evaluated},
    }
    state = {"config": config_hash(described), "code": code, "inputs": _digest(facts)}
    place = epath.Path(output)
    if present := _present(place, state):
        return present
    _refuse_foreign(place)
    work = place / _WORK
    with _locked(place):
        _start(work, state)
        _save_evaluation(work, config, evaluation, progress)
        _run_beam(tasks, config, work, options, progress)
        progress("finishing", 0, 0)
        result = json.loads((work / "result.json").read_text())
        funnel = funnel_table(result["totals"])
        files = tuple(ShardFile(**entry) for entry in result["files"])
        manifest = Manifest(
            files=files,
            config=described,
            config_hash=config_hash(described),
            code_hash=code,
            versions={**library_versions(), **_versions()},
            counts={f"{unit}_{when}": n for when in ("read", "written") for unit, n in funnel[when].items()},
            about={"kind": "interleaved", "title": "Web pages"},
        )
        _put_into_place(place, work, manifest, funnel, state)
    return Outcome(manifest, funnel, skipped=False)


def _state_of_set(path: str) -> list[Any]:
    """What tells whether an evaluation set has changed: names and sizes of its files."""
    place = epath.Path(path)
    if place.is_dir():
        return [[file, (place / file).stat().length] for file in sorted(files_below(path))]
    return [[place.name, place.stat().length]] if place.exists() else []


def _code() -> str:
    modules = (data_pipelines.prepare.web.html, data_pipelines.prepare.web.html_encoding, data_pipelines.records)
    return code_hash(Path(__file__).parent, *(Path(str(module.__file__)) for module in modules))


def _versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _present(place: epath.Path, state: dict[str, str]) -> Outcome | None:
    """The finished output of this very run, if it is there."""
    try:
        if json.loads((place / _RUN).read_text()) != state:
            return None
        funnel = json.loads((place / FUNNEL).read_text())
    except (OSError, ValueError):
        return None
    manifest = _whole(place, state["config"])
    return None if manifest is None or not (place / REPORT).exists() else Outcome(manifest, funnel, skipped=True)


def _whole(place: epath.Path, wanted: str) -> Manifest | None:
    """The manifest, if every file is as it says: byte by byte here, by its size in an object store."""
    if "://" not in os.fspath(place):
        return is_intact(Path(place), same=lambda found: found.config_hash == wanted)
    try:
        manifest = read_manifest(place)
        same = all((place / file.name).stat().length == file.bytes for file in manifest.files)
    except (UserError, OSError):
        return None
    return manifest if same and manifest.config_hash == wanted else None


def _refuse_foreign(place: epath.Path) -> None:
    if place.exists() and not place.is_dir():
        raise UserError(f"{place}: is a file; give a directory for the output")
    if place.is_dir() and not any((place / name).exists() for name in (MANIFEST, _WORK, _RUN)) and any(place.iterdir()):
        raise UserError(f"{place}: holds other files; give a new or empty directory for the output")


@contextlib.contextmanager
def _locked(place: epath.Path) -> Iterator[None]:
    """Keeps a second run off a local output; the lock goes with the process, also when it is killed."""
    work = place / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        if "://" in os.fspath(place):
            yield
            return
        handle = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror or error}); choose another directory") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{place}: another process is preparing pages there; wait for it or stop it") from None
    finally:
        os.close(handle)


def _start(work: epath.Path, state: dict[str, str]) -> None:
    """Keeps what an interrupted run of the same state has read; clears everything else."""
    same = (work / _RUN).exists() and (work / _RUN).read_text() == json.dumps(state)
    for path in work.iterdir():
        if not (same and path.name in ("pages", _RUN)):
            path.rmtree() if path.is_dir() else path.unlink()
    for name in ("pages", "shards"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / _RUN).write_text(json.dumps(state))


def _save_evaluation(work: epath.Path, config: WebConfig, evaluation: Sequence[str], progress: Progress) -> None:
    def opened() -> Iterator[tuple[str, Iterator[Any]]]:
        for number, path in enumerate(evaluation):
            progress("reading evaluation sets", number, len(evaluation))
            yield open_set(path)

    build_index(opened(), config.contamination).save(work / "evaluation.npz")


def _run_beam(tasks: list[Task], config: WebConfig, work: epath.Path, options: Any, progress: Progress) -> None:
    import apache_beam as beam

    from data_pipelines.prepare.web.pipeline import Places, build

    folders = {task["name"]: task["folder"] for task in tasks if "folder" in task}
    pipeline = beam.Pipeline(options=options)
    build(pipeline, tasks, config, Places(work, folders))
    with _watched(tasks, work, progress):
        try:
            pipeline.run().wait_until_finish()
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a worker raised, in the runner's wrapping
            full = _disk_full(error)
            if full is not None:
                raise full from None
            raise RunError(
                f"Beam stopped ({type(error).__name__}): {' '.join(str(error).split())[-600:]}; the pages that were "
                "read are kept, so the same command goes on from them"
            ) from error
    if not (work / "result.json").exists():
        raise RunError("Beam ended without a result; see the runner's log, and run the same command again")


def _import_beam() -> None:
    """Beam warns at every import of Google's libraries that it can do without."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        need("apache_beam", "prepare")
    finally:
        logging.disable(before)
    # What a worker raises comes out of the run as one error; Beam would log it with every layer that it went through.
    verbose = logging.getLogger("vlm_jax").isEnabledFor(logging.DEBUG)
    logging.getLogger("apache_beam").setLevel(logging.INFO if verbose else logging.CRITICAL)


def _options(flags: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, WorkerOptions

    said = io.StringIO()
    unknown: list[str] = []
    try:
        with contextlib.redirect_stderr(said):  # argparse prints all of Beam's options there
            options = PipelineOptions(list(flags))
            chosen = options.view_as(StandardOptions)
            options.get_all_options(add_extra_args_fn=lambda parser: unknown.extend(parser.parse_known_args(flags)[1]))
    except (SystemExit, ValueError) as error:
        why = said.getvalue().strip().rpartition("error: ")[2] or error
        raise UserError(f"{' '.join(flags)}: {why}; see Apache Beam's list of pipeline options") from None
    workers = options.view_as(WorkerOptions)
    workers.default_sdk_harness_log_level = workers.default_sdk_harness_log_level or "ERROR"
    if chosen.runner is None:
        if unknown:
            raise UserError(f"{unknown[0]}: neither an option of this command nor one of Beam's runner on this machine")
        chosen.runner = LOCAL_RUNNER
    return options


@contextlib.contextmanager
def _watched(tasks: list[Task], work: epath.Path, progress: Progress) -> Iterator[None]:
    """Reports how many tasks are read and how many shards written, by the files that are there."""
    over = threading.Event()
    names = {f"{task_key(task)}.msgpack" for task in tasks}

    def look() -> None:
        while not over.wait(0.5):
            with contextlib.suppress(OSError):
                read = len(names & {path.name for path in (work / "pages").iterdir()})
                shards = sum(not path.name.startswith(".") for path in (work / "shards").iterdir())
                if read < len(names):
                    progress("reading pages", read, len(names))
                else:
                    progress("writing shards" if shards else "comparing pages and pictures", shards, 0)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _disk_full(error: BaseException) -> OSError | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        cause = cause.__cause__
    return None


def _put_into_place(
    place: epath.Path, work: epath.Path, manifest: Manifest, funnel: dict[str, Any], state: dict[str, str]
) -> None:
    """The manifest goes first and comes last, so that no moment shows a whole output that is none."""
    (place / MANIFEST).unlink(missing_ok=True)
    for path in place.glob("shard-*"):
        path.unlink()
    for file in manifest.files:
        (work / "shards" / file.name).replace(place / file.name)
    text = json.dumps(funnel, indent=1, ensure_ascii=False) + "\n"
    (place / FUNNEL).write_bytes(text.encode("utf-8", "backslashreplace"))
    write_report(place / REPORT, funnel, manifest)
    (place / _RUN).write_text(json.dumps(state))
    write_manifest(place, manifest)
    if "://" in os.fspath(work):
        work.rmtree()
    else:
        shutil.rmtree(work, ignore_errors=True)
