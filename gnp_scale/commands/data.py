"""The commands for data sets: `gnp-scale data download | index | prepare | verify | show`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import local_path
from gnp_scale.commands.common import on_cpu
from gnp_scale.config import Config, ConfigError, DataConfig, check
from gnp_scale.exit_codes import Exit
from gnp_scale.run.store import store_folder
from gnp_scale.run.store_requests import StoreError

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def add(commands: Any) -> None:
    """Adds the commands to the parsers `commands`."""
    data = commands.add_parser("data", help="get data sets").add_subparsers(required=True, metavar="COMMAND")
    download = data.add_parser("download", help="download a data set, checked and resumable")
    download.add_argument("dataset", metavar="NAME", help="fashion_mnist, cifar10 or cifar100")
    download.add_argument("--root", default=Config().data.root, help="folder for data sets (default: %(default)s)")
    download.add_argument("--url", help="another server that has the same files")
    download.set_defaults(command=_download, takes_flags=False)
    _add_image_commands(data)


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
        "--shorter-side",
        type=at_least(1),
        metavar="PIXELS",
        help="images with a longer one are resized to it, as JPEGs (default: images stay as they are)",
    )
    prepare.add_argument(
        "--restart-markers", action="store_true", help="so that random crops of JPEGs are decoded alone (docs/data.md)"
    )
    verify.add_argument("--decode", action="store_true", help="decode every image too")
    for command in (prepare, verify):
        command.add_argument("--num-threads", type=at_least(1), default=16, help="default: %(default)s")
    show.add_argument("--out", default="images.png", help="file of the picture (default: %(default)s)")


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
    from gnp_scale.data.encode import Encoding
    from gnp_scale.data.prepare import prepare

    out = local_path("OUT", options.out)
    source = _data_folder("SOURCE", options.folder)
    encoding = Encoding(options.shorter_side, options.restart_markers)
    try:
        prepare(source, out, options.shard_mib << 20, options.num_threads, options.form, encoding)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error}): mend that, or give another folder as OUT") from error
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
    on_cpu()
    from gnp_scale import recipe
    from gnp_scale.data.show import show
    from gnp_scale.run.console import make_console

    text = options.folder
    folder = store_folder("FOLDER", text) if "://" in text else _data_folder("FOLDER", text).absolute()
    config = Config(data=DataConfig(name=folder.name, root=str(folder.parent)))
    data = recipe.override(config, flags, "gnp-scale data show FOLDER [--out FILE]", ("--out",)).data
    try:
        show(data, _picture_file(options.out), make_console())
    except StoreError:
        raise
    except OSError as error:
        raise ConfigError(f"{folder} cannot be shown ({error}): check FOLDER and --data.name") from error
    except MemoryError as error:
        raise ConfigError(f"--data.image-size is {data.image_size}: there is not enough memory for it") from error
    return Exit.FINISHED


def _picture_file(text: str) -> Path:
    path = local_path("--out", text)
    check(path.suffix.lower() in _PICTURES, f"--out is {text}: give the name of a file that ends in {_PICTURES[0]}")
    check(path.parent.is_dir(), f"--out is {text}: there is no folder {path.parent}; make it, or give another one")
    return path


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
