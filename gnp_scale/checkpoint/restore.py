"""Reads checkpoints: only intact ones, and the same one in every process."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from gnp_kernels.trees import path_name

from gnp_scale import recipe
from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checkpoint.checksums import mismatched
from gnp_scale.checkpoint.metadata import DamagedError, Metadata
from gnp_scale.checkpoint.retention import Scores
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import Config, ConfigError
from gnp_scale.run import consensus
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.run_dir import changes
from gnp_scale.run.store import Folder
from gnp_scale.run.store_requests import StoreError, may_pass, not_now
from gnp_scale.run.streams import one_line
from gnp_scale.training.state import NetworkState

MOST_LISTINGS = 10
"""Of the checkpoints of a run that deletes them while they are read."""


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint whose arrays equal the saved ones."""

    step: int
    state: Any
    metadata: Metadata
    skipped: dict[int, str]
    """The newer, damaged ones, and what is wrong with each."""


def latest_valid(
    store: Store, steps: Iterable[int], abstract_state: Any, config: Config | None = None
) -> VerifiedCheckpoint:
    """The newest intact checkpoint of `steps`, with the types and shardings of `abstract_state`. Changes nothing.

    Raises:
        ConfigError: none of them is intact, or the configuration of its run differs from `config`.
    """
    skipped: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            metadata = tried(store.metadata, step)
            if config is not None:
                _check_same_run(store, step, metadata, config)
            return VerifiedCheckpoint(step, read_state(store, step, abstract_state, metadata), metadata, skipped)
        except DamagedError as error:
            skipped[step] = str(error)
    raise ConfigError(
        f"no checkpoint in {store.folder} is intact, and none was changed ({_told(skipped)}): put one back, or start "
        "again with another --run-dir"
    )


def tried(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, if it fails in no process.

    Raises:
        DamagedError: it fails in one of them.
    """
    result, problem = None, None
    try:
        result = read(*arguments)
    except Exception as error:
        # There is no list of the errors that a damaged file can cause.
        problem = one_line(error)
    _agree_on(problem)
    return result


def read_state(store: Store, step: int, abstract_state: Any, metadata: Metadata) -> Any:
    """The state of a step, with the types and shardings of `abstract_state`, which may have some of its parts only.

    Raises:
        ConfigError: its optimizer has another form.
        DamagedError: it cannot be read in one of the processes, or has not the checksums of `metadata`.
    """
    _check_form(store, step, metadata["checksums"], abstract_state)
    state = tried(store.read, step, abstract_state)
    parts = _parts(abstract_state)
    names = mismatched(state, {name: value for name, value in metadata["checksums"].items() if _part(name) in parts})
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DamagedError(f"arrays differ from the saved ones: {', '.join(names[:3])}{more}")
    return state


def _parts(state: Any) -> set[str]:
    """The names of the fields of a state, or of the entries of a dictionary, those that are None too."""
    return {path_name(path) for path, _ in jax.tree.leaves_with_path(state, is_leaf=lambda part: part is not state)}


def _part(name: str) -> str:
    return name.partition("/")[0]


def _check_form(store: Store, step: int, stored: Iterable[str], abstract_state: Any) -> None:
    """Refuses a state of the optimizer in another form, which is not damage: once, frozen parameters had moments."""
    names = {path_name(path) for path, _ in jax.tree.leaves_with_path(abstract_state)}
    others, missing = (
        sorted(name for name in some if name.startswith("opt_state/"))
        for some in (set(stored) - names, names - set(stored))
    )
    if others and missing:
        raise ConfigError(
            f"the checkpoint of step {step} in {store.folder} has the state of the optimizer in the form of another "
            f"version ({others[0]}, not {missing[0]}): go on with that version, or start again with another --run-dir"
        )


def _agree_on(problem: str | None) -> None:
    problem = consensus.first_error(problem)
    if problem is not None:
        raise DamagedError(problem)


def _check_same_run(store: Store, step: int, metadata: Metadata, config: Config) -> None:
    changed = changes(recipe.from_json(json.dumps(metadata["config"])), config)
    if changed:
        raise ConfigError(
            f"the checkpoint of step {step} in {store.folder} belongs to a run with another configuration "
            f"({', '.join(changed)}): choose another --run-dir"
        )


def stored_scores(store: Store, steps: Iterable[int]) -> dict[int, Scores]:
    """The evaluations that were saved with checkpoints, if the main process can read them."""
    scores = consensus.broadcast([(step, _scores(store, step)) for step in steps if is_main_process()])
    return {step: values for step, values in scores if values}


def _scores(store: Store, step: int) -> Scores | None:
    try:
        return store.scores(step)
    except Exception:
        # `latest_valid` handles a damaged one on restore. There is no list of the errors that it can cause.
        return None


def load_newest(run_dir: Folder, abstract_state: NetworkState) -> tuple[int, NetworkState]:
    """(step, state) of the newest intact checkpoint. Prints a line for each newer one, which is damaged. Changes
    nothing in the folder, because a run may write there.

    Raises:
        ConfigError: there is none.
    """
    store = open_store(run_dir)
    for _ in range(MOST_LISTINGS):
        whole = newest_of(store, stored_steps(run_dir, store), abstract_state)
        if whole is not None:
            return whole.step, whole.state
    raise deletes_too_soon(run_dir)


def load_each(run_dir: Folder, abstract_state: NetworkState) -> Iterator[tuple[int, NetworkState]]:
    """(step, state) of each intact checkpoint, from the newest to the oldest. Prints a line for each damaged one, and
    leaves out what the run deletes meanwhile. Changes nothing in the folder.

    Raises:
        ConfigError: the folder has no checkpoint.
    """
    store = open_store(run_dir)
    for step in reversed(stored_steps(run_dir, store)):
        try:
            state = read_state(store, step, abstract_state, tried(store.metadata, step))
        except DamagedError as error:
            if step not in deleted(store, [step]):
                announce(f"the checkpoint of step {step} is damaged ({error}): it is left out")
            continue
        yield step, state
        # Before the next one is read.
        del state


def newest_of(store: Store, steps: Iterable[int], abstract_state: NetworkState) -> VerifiedCheckpoint | None:
    """As `latest_valid`, with a line for each damaged checkpoint; None if one that it tried was not damaged but has
    been deleted since `steps` were listed: list them again.
    """
    try:
        whole = latest_valid(store, steps, abstract_state)
    except ConfigError:
        if deleted(store, steps):
            return None
        raise
    if whole.skipped and deleted(store, whole.skipped):
        return None
    for step, problem in whole.skipped.items():
        announce(f"the checkpoint of step {step} is damaged ({problem}): using that of step {whole.step}")
    return whole


def deletes_too_soon(run_dir: Folder) -> ConfigError:
    """The error after `MOST_LISTINGS`."""
    return ConfigError(
        f"the run in {run_dir} deletes its checkpoints before they are read: try again, average fewer, or train with a "
        "larger --checkpoint.keep-last"
    )


def deleted(store: Store, steps: Iterable[int]) -> set[int]:
    """Those of `steps` that the run has deleted since they were listed."""
    return set(steps) - set(_stored_steps(store))


def stored_shapes(run_dir: Folder) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by path, such as `head/bias`, in the newest checkpoint with an intact description.
    Prints no line for a damaged one: `load_newest` does.

    Raises:
        ConfigError: there is none.
    """
    store = open_store(run_dir)
    skipped: dict[int, str] = {}
    for step in reversed(stored_steps(run_dir, store)):
        try:
            tried(store.metadata, step)
            leaves = jax.tree.leaves_with_path(tried(store.abstract_state, step)["params"])
            return {path_name(path): leaf.shape for path, leaf in leaves}
        except DamagedError as error:
            skipped[step] = str(error)
    raise ConfigError(f"no checkpoint in {store.folder} is intact ({_told(skipped)}): put one back")


def _told(skipped: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {problem}" for step, problem in skipped.items())


def has_checkpoints(run_dir: Folder) -> bool:
    """Whether the folder has a checkpoint, intact or not; the same in every process."""
    return bool(_stored_steps(open_store(run_dir)))


def stored_steps(run_dir: Folder, store: Store) -> list[int]:
    """The steps in `run_dir` that have a checkpoint, in order, as the main process sees them.

    Raises:
        ConfigError: there are none, or they cannot be listed.
    """
    steps = _stored_steps(store)
    if not steps:
        raise ConfigError(f"{run_dir} holds no checkpoints: give the folder of a run that has saved one")
    return steps


def _stored_steps(store: Store) -> list[int]:
    try:
        return consensus.broadcast(store.steps() if is_main_process() else [])
    except StoreError as error:
        # The failure of the main process ends the others.
        if may_pass(error):
            raise not_now(store.folder, error) from error
        raise ConfigError(
            f"{store.folder} cannot be read ({error}): check the credentials in the environment"
        ) from error
