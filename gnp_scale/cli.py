"""The command line: `gnp-scale train | status | drill | eval | fingerprint | data | bench`."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnp_scale.arguments import ABOUT_TRAIN, EXAMPLES, Parser, Version, at_least
from gnp_scale.checks import DeviceError, local_path, split_recipe
from gnp_scale.config import Config, ConfigError, DataConfig
from gnp_scale.exit_codes import Exit, exit_code
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.run import streams
from gnp_scale.run.store import Folder, StoreError, run_folder, store_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command in `arguments`; returns the exit code. A user's mistake gives one line and exit code 2."""
    streams.protect()
    code, reason = _run(arguments)
    lost = streams.lost_results()
    if lost is not None and code == Exit.FINISHED:
        streams.say(lost)
        code = Exit.FAILED
    if "gnp_scale.run.processes" not in sys.modules:
        return code
    from gnp_scale.run import processes

    return processes.leave(code, reason)


def _run(arguments: Sequence[str] | None) -> tuple[int, str | None]:
    """The exit code, and the reason if the command failed with an error."""
    try:
        options, flags = _parser().parse_known_args(arguments)
        if flags and not options.takes_flags:
            raise ConfigError(f"there is no option {flags[0]}: see gnp-scale {options.name} --help")
        return options.command(options, flags), None
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        reason = "interrupted" if code == Exit.INTERRUPTED else str(error)
        if code == Exit.FAILED and not isinstance(error, DeviceError | StoreError):
            traceback.print_exc()
        else:
            streams.say(reason)
        return code, reason.partition("\n")[0]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gnp-scale",
        description="Training with a penalty on the gradient norm.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe, or resume its run", add_help=False, allow_abbrev=False)
    train.add_argument("recipe", nargs="?")
    train.add_argument("--run-dir")
    train.add_argument("--kernels")
    train.set_defaults(command=_train, takes_flags=True)

    evaluate = commands.add_parser("eval", help="evaluate the newest checkpoint of a run", allow_abbrev=False)
    evaluate.add_argument("run_dir", metavar="RUN", help="folder of the run (flags of data and mesh may follow)")
    evaluate.add_argument("--pictures", metavar="FOLDER", help="draw the confusion matrix and the worst images there")
    evaluate.set_defaults(command=_eval, takes_flags=True)

    fingerprint = commands.add_parser("fingerprint", help="print a hash of the saved state")
    fingerprint.add_argument("run_dir", metavar="RUN", help="folder of the run")
    fingerprint.add_argument("--step", type=at_least(0), help="which checkpoint (default: the newest)")
    fingerprint.set_defaults(command=_fingerprint, takes_flags=False)

    status = commands.add_parser("status", help="the state of a run, and how it spent its time")
    status.add_argument("run_dir", metavar="RUN", help="folder of the run, which may be running")
    status.set_defaults(command=_status, takes_flags=False)

    drill = commands.add_parser("drill", help="kill runs of a recipe at random, and compare", allow_abbrev=False)
    drill.add_argument("recipe", metavar="RECIPE", help="FILE:FUNCTION (flags of train may follow)")
    drill.add_argument("--run-dir", help="a new folder for all of its runs (default: runs/drill-RECIPE)")
    drill.add_argument("--store", help="gs:// or s3:// folder for the runs; their logs stay in --run-dir")
    drill.add_argument("--num-kills", type=at_least(1), default=10, help="in total (default: %(default)s)")
    drill.add_argument("--num-processes", type=at_least(1), nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    drill.add_argument(
        "--num-devices", type=at_least(1), default=4, help="CPU devices, over all processes (default: 4)"
    )
    drill.add_argument("--seed", type=at_least(0), default=0, help="seed of the kills (default: %(default)s)")
    drill.add_argument(
        "--timeout-s",
        type=at_least(1),
        default=300,
        help="in which each start of a run must end (default: %(default)s)",
    )
    drill.set_defaults(command=_drill, takes_flags=True)

    data = commands.add_parser("data", help="get data sets").add_subparsers(required=True, metavar="COMMAND")
    download = data.add_parser("download", help="download a data set, checked and resumable")
    download.add_argument("dataset", metavar="NAME", help="fashion_mnist, cifar10 or cifar100")
    download.add_argument("--root", default=Config().data.root, help="folder for data sets (default: %(default)s)")
    download.add_argument("--url", help="another server that has the same files")
    download.set_defaults(command=_download, takes_flags=False)
    _add_image_commands(data)

    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="COMMAND")
    kernels = bench.add_parser("kernels", help="check the kernels, time them against XLA, and find their best blocks")
    kernels.add_argument("--model", default="vit_b", help="network whose parameters are used (default: %(default)s)")
    kernels.add_argument("--rounds", type=at_least(2), default=20, help="calls that are timed (default: %(default)s)")
    kernels.add_argument("--no-tuning", action="store_true", help="do not search for better block sizes")
    kernels.set_defaults(command=_bench_kernels, takes_flags=False)
    return parser


def _add_image_commands(data: Any) -> None:
    """Adds the commands for data sets of encoded images."""
    index = data.add_parser("index", help="list the images of a folder or of tar files, with their checksums")
    prepare = data.add_parser("prepare", help="write a data set in any form as shards for random access; resumable")
    verify = data.add_parser("verify", help="find damaged, missing and foreign files and wrong labels")
    show = data.add_parser("show", help="a picture of images, raw and augmented, and the classes", allow_abbrev=False)
    for command, function in ((index, _index), (prepare, _prepare), (verify, _verify), (show, _show)):
        command.add_argument("folder", metavar="SOURCE" if command is prepare else "FOLDER", help="of the data set")
        command.set_defaults(command=function, takes_flags=command is show)
    prepare.add_argument("out", metavar="OUT", help="a new folder, named as the data set")
    prepare.add_argument("--shard-mib", type=at_least(1), default=256, help="size of a shard (default: %(default)s)")
    prepare.add_argument(
        "--form",
        choices=("arrayrecord", "webdataset"),
        default="arrayrecord",
        help="of the shards; webdataset (tar files) is also read from s3:// (default: %(default)s)",
    )
    prepare.add_argument(
        "--restart-markers", action="store_true", help="so that random crops of JPEGs are decoded alone (docs/data.md)"
    )
    verify.add_argument("--decode", action="store_true", help="decode every image too")
    for command in (prepare, verify):
        command.add_argument("--num-threads", type=at_least(1), default=16, help="default: %(default)s")
    show.add_argument("--out", default="images.png", help="file of the picture (default: %(default)s)")


# Each command imports what it needs, so that help and errors do not wait for the libraries of training.


def _train(options: argparse.Namespace, flags: Sequence[str]) -> int:
    if options.recipe is None or {"-h", "--help"} & set(flags):
        return _explain_train(options.recipe, flags)
    if ":" not in options.recipe and any(":" in flag for flag in flags):
        raise ConfigError("the recipe comes first: gnp-scale train FILE:FUNCTION, and then the flags")
    default = _default_run_dir(options)
    run_dir = default if options.run_dir is None else run_folder("--run-dir", options.run_dir)
    stop = StopRequest().watch()
    _import_jax()
    from gnp_scale import recipe
    from gnp_scale.run import processes

    processes.start()
    stop.joined(*processes.coordination())
    processes.check_devices()
    from gnp_scale.loop import train

    if options.kernels is not None:
        flags = [*flags, "--train.kernels", options.kernels]
    return train(recipe.override(recipe.load(options.recipe), flags, *_TRAIN), run_dir, stop)


_TRAIN = (
    "gnp-scale train FILE:FUNCTION [--run-dir RUN] [--kernels auto|xla|triton|pallas]",
    ("--run-dir", "--kernels"),
)


def _explain_train(name: str | None, flags: Sequence[str]) -> int:
    """Prints the sections, then all options, with the values of the recipe if there is one."""
    if not {"-h", "--help"} & set(flags):
        raise ConfigError("train needs a recipe: gnp-scale train configs/digits.py:quickstart, for example")
    if name is not None:
        _on_cpu()
    from gnp_scale import recipe

    config = Config() if name is None else recipe.load(name)
    defaults = "gnp_scale/config/; name a recipe to see its own" if name is None else f"the recipe {name}"
    about = ABOUT_TRAIN.format(sections=recipe.overview(), defaults=defaults)
    recipe.override(config, ["--help"], *_TRAIN, about)
    return Exit.FINISHED


def _default_run_dir(options: argparse.Namespace, prefix: str = "") -> Path:
    path, function = split_recipe(options.recipe)
    return Path("runs") / f"{prefix}{Path(path).stem}-{function}"


def _import_jax() -> Any:
    """Imports JAX, which reads environment variables and refuses some values of them."""
    try:
        import jax
    except ValueError as error:
        names = ", ".join(name for name in os.environ if name.startswith("JAX_"))
        raise ConfigError(f"JAX does not start with the variables {names}: {error}") from error
    return jax


def _on_cpu() -> None:
    """Keeps this process away from the accelerators, which a run may be using."""
    _import_jax().config.update("jax_platforms", "cpu")


def _existing_run(text: str) -> Folder:
    if ".py:" in text:
        raise ConfigError(f"{text} is a recipe: give the folder of its run, runs/NAME or that of --run-dir")
    return run_folder("RUN", text)


def _eval(options: argparse.Namespace, flags: Sequence[str]) -> int:
    run_dir = _existing_run(options.run_dir)
    pictures = None if options.pictures is None else local_path("--pictures", options.pictures)
    _import_jax()
    from gnp_scale import recipe
    from gnp_scale.run import processes
    from gnp_scale.run.run_dir import stored_config

    for flag in flags:
        if flag.startswith("--") and not flag.startswith(("--data.", "--mesh.", "--help")):
            raise ConfigError(f"eval has no option {flag}: only those of data and mesh; the run decides the rest")
    config = recipe.override(stored_config(run_dir), flags, "gnp-scale eval RUN [--pictures FOLDER]", ("--pictures",))
    processes.start()
    processes.check_devices()
    from gnp_scale.loop import evaluate_run

    step, scores = evaluate_run(config, run_dir, pictures)
    if processes.is_main_process():
        print(json.dumps({"step": step, **scores}))
    return Exit.FINISHED


def _status(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.run.status import print_status

    print_status(_existing_run(options.run_dir))
    return Exit.FINISHED


def _fingerprint(options: argparse.Namespace, flags: Sequence[str]) -> int:
    _on_cpu()
    from gnp_scale.checkpoint import fingerprint

    step, digest = fingerprint(_existing_run(options.run_dir), options.step)
    print(f"{digest}  step {step}")
    return Exit.FINISHED


def _drill(options: argparse.Namespace, flags: Sequence[str]) -> int:
    default = _default_run_dir(options, "drill-")
    folder = default if options.run_dir is None else local_path("--run-dir", options.run_dir)
    _import_jax()
    from gnp_scale.chaos.drill import drill

    counts = options.num_processes, options.num_kills, options.num_devices
    store = None if options.store is None else store_folder("--store", options.store)
    return drill([options.recipe, *flags], folder, *counts, options.seed, options.timeout_s, store)


def _download(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.data.download import download

    download(options.dataset, local_path("--root", options.root), options.url)
    return Exit.FINISHED


def _index(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.data.containers.open_folder import write_index

    contents = write_index(_data_folder("FOLDER", options.folder))
    print(_overview(contents))
    return Exit.FINISHED


def _prepare(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.data.containers.open_folder import open_folder
    from gnp_scale.data.prepare import prepare

    out = local_path("OUT", options.out)
    source = _data_folder("SOURCE", options.folder)
    size, markers = options.shard_mib << 20, options.restart_markers
    prepare(source, out, size, options.num_threads, options.form, restart_markers=markers)
    print(_overview(open_folder(str(out))))
    return Exit.FINISHED


def _verify(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.data.verify import verify

    folder = _data_folder("FOLDER", options.folder)
    num_examples, problems = verify(folder, options.num_threads, decodes=options.decode)
    for problem in problems:
        print(problem)
    print(f"{folder}: {num_examples} examples, {len(problems)} problems")
    return Exit.FAILED if problems else Exit.FINISHED


def _show(options: argparse.Namespace, flags: Sequence[str]) -> int:
    _on_cpu()
    from gnp_scale import recipe
    from gnp_scale.data.show import show
    from gnp_scale.run.console import make_console

    text = options.folder
    folder = store_folder("FOLDER", text) if "://" in text else _data_folder("FOLDER", text).absolute()
    config = Config(data=DataConfig(name=folder.name, root=str(folder.parent)))
    data = recipe.override(config, flags, "gnp-scale data show FOLDER [--out FILE]", ("--out",)).data
    show(data, local_path("--out", options.out), make_console())
    return Exit.FINISHED


def _data_folder(option: str, text: str) -> Path:
    if "://" in text:
        raise ConfigError(
            f"{option} is {text}: this command needs a local folder; give the one that is copied to the bucket"
        )
    folder = local_path(option, text)
    if not folder.is_dir():
        raise ConfigError(f"{option} is {text}: there is no such folder")
    return folder


def _overview(contents: Any) -> str:
    sizes = ", ".join(f"{name} {len(source)}" for name, source in contents.splits.items())
    return f"{contents.form}: {sizes} examples of {len(contents.class_names)} classes"


def _bench_kernels(options: argparse.Namespace, flags: Sequence[str]) -> int:
    _import_jax()
    from gnp_scale.run import processes

    processes.start()
    processes.check_devices()
    from gnp_scale.bench import bench_kernels

    bench_kernels(options.model, options.rounds, tune=not options.no_tuning)
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
