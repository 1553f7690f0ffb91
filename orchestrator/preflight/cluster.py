"""The Ray cluster under a run: start or join one, lock the run's name, remove what a killed run left.

Safe by default: token authentication is on; a cluster started here, its dashboard too, listens on loopback only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.address import LOOPBACK, own_address
from actors.control import NAMESPACE, control_name
from actors.shared_memory import shared_folder
from configs.refusal import RecipeError, reason
from configs.schema import Recipe
from orchestrator.preflight.comparison import MIB
from orchestrator.preflight.disk import refused_if_full
from orchestrator.preflight.survey import Survey, survey_cluster, survey_here
from orchestrator.stopping import STOP_COMMAND

CONTROL_FILE = "control.json"
LOCK = "lock"  # locked while a run lives; holds its process id and host
KNOCK_SECONDS = 10.0
_DRIVER: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}


@contextlib.contextmanager
def own_name(directory: Path) -> Iterator[None]:
    """Lock a run's name. The lock ends with the process, however it ends.

    Raises RecipeError when a live run holds it, or the disk is full.
    """
    with refused_if_full(directory), _forgotten_if_refused(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("ab", buffering=0)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"run.name: {directory.name!r} is alive in {directory}; stop it (`logratio stop {directory.name}`) "
                "or choose another run.name"
            ) from None
        with refused_if_full(directory), _forgotten_if_refused(directory):
            lock.truncate(0)
            lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield


@contextlib.contextmanager
def _forgotten_if_refused(directory: Path) -> Iterator[None]:
    """Nothing is left of a run that has no room for its lock."""
    try:
        yield
    except OSError:
        if directory.exists() and {file.name for file in directory.iterdir()} <= {LOCK}:
            (directory / LOCK).unlink(missing_ok=True)
            directory.rmdir()
        raise


def is_alive(directory: Path) -> bool:
    """Whether a process has the run of a directory."""
    try:
        with own_name(directory):
            return False
    except RecipeError:
        return True


def ask_to_stop(directory: Path) -> bool:
    """Signal a run that has no control actor yet to stop. False if none is alive.

    Raises RecipeError if it starts on another machine.
    """
    try:
        with (directory / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        holder = json.loads((directory / LOCK).read_text() or "{}")
    if holder.get("host") != socket.gethostname():
        raise RecipeError(f"{directory} is still starting on {holder.get('host', 'another machine')}; ask again soon")
    os.kill(holder["pid"], STOP_COMMAND)
    return True


@contextlib.contextmanager
def connected(recipe: Recipe, directory: Path) -> Iterator[str | None]:
    """A Ray driver for the time of a run, and the control file by which commands find it. Yields the address of a
    dashboard that was started for it."""
    sweep(recipe)
    try:
        with driver(recipe) as dashboard:
            _write_control(directory)
            yield dashboard
    finally:
        (directory / CONTROL_FILE).unlink(missing_ok=True)
        sweep(recipe)


@contextlib.contextmanager
def driver(recipe: Recipe) -> Iterator[str | None]:
    """Join the cluster that the recipe or RAY_ADDRESS names, or start one here. Yields the address of the dashboard of
    one that was started, if it has one. Inside of another `driver` it is the same one, which goes on."""
    if _is_driver():
        yield None
        return
    try:
        if address := _address(recipe):
            _join(address)
            yield None
        else:
            cpus, settings = os.cpu_count() or 1, recipe.cluster
            yield start_local(cpus, settings.object_store_mib, settings.dashboard)
    finally:  # also when a stop comes while it starts
        _ray().shutdown()


def _join(address: str) -> None:
    try:
        _prepare_to_join(address)
        _ray().init(address=address, **_DRIVER)
    except Exception as error:  # Ray raises many types, bare Exception too
        raise RecipeError(f"cluster.address: {address} cannot be joined ({reason(error)}); is it up?") from None


@contextlib.contextmanager
def attached(directory: Path) -> Iterator[Any]:
    """The control actor of a live run, from another process. Raises RecipeError when there is none."""
    control = directory / CONTROL_FILE
    if not control.exists():
        raise RecipeError(f"{directory} is not running; its control.json is gone (`logratio resume` goes on with it)")
    address = json.loads(control.read_text())["address"]
    try:
        yield _control_at(address, directory)
    finally:
        _ray().shutdown()


def _control_at(address: str, directory: Path) -> Any:
    try:
        _prepare_to_join(address)
        _ray().init(address=address, **_DRIVER)
        return _ray().get_actor(control_name(directory.name))
    except Exception as error:  # Ray raises many types
        raise RecipeError(
            f"{directory} does not answer ({reason(error)}); it may have died "
            f"(`logratio resume {directory.name}` goes on with it)"
        ) from None


def _prepare_to_join(address: str) -> None:
    """Check HOST:PORT before Ray, which would wait for ever. Raises ValueError for a malformed address, and OSError if
    nothing listens there. Keeps a loopback address if the cluster listens on loopback only: Ray would replace it by the
    machine's own. Ray checks other forms itself."""
    _prepare_environment()
    if "://" in address or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise ValueError("write HOST:PORT, auto, or ray://HOST:PORT")
    _knock(host.strip("[]"), int(port))
    if host in (LOOPBACK, "localhost"):
        try:
            _knock(own_address(), int(port))
        except OSError:
            loopback_only()


def _knock(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=KNOCK_SECONDS).close()


def survey(recipe: Recipe, directory: Path) -> Survey:
    """The machines of the run: the cluster that this process has joined, or the one that would start here."""
    if _address(recipe):
        return survey_cluster(directory)
    store = recipe.cluster.object_store_mib
    return survey_here(directory, store * MIB if store else None)


def joins_cluster(recipe: Recipe) -> bool:
    """Whether the run joins a running cluster, rather than starting one here."""
    return bool(_address(recipe))


def sweep(recipe: Recipe) -> None:
    """Remove the weight files of a killed run from shared memory here. On other nodes the run's next rollout member
    does."""
    shutil.rmtree(shared_folder(recipe.run.name, recipe.run.root), ignore_errors=True)


def loopback_only() -> None:
    """Keep Ray on 127.0.0.1. Unless this variable is set when Ray is first imported, Ray uses the machine's own address
    instead."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def prepare_local(dashboard: bool = False) -> None:
    """Set the environment for a local cluster (loopback, token). Called before Ray is first imported. Only with its
    dashboard does Ray export metrics: both cost seconds of a start. So do workers that Ray starts ahead of any task:
    they lack the environment of a role, and no member can use them."""
    loopback_only()
    os.environ.setdefault("RAY_enable_metrics_collection", "1" if dashboard else "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    _prepare_environment()


def start_local(cpus: int, object_store_mib: int | None, dashboard: bool = False) -> str | None:
    """Start a Ray cluster on this machine for this process: loopback, token. Returns its dashboard's address. Raises
    RecipeError if that fails."""
    prepare_local(dashboard)
    try:
        context = _ray().init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            dashboard_host=LOOPBACK,
            object_store_memory=object_store_mib * MIB if object_store_mib else None,
            _node_ip_address=LOOPBACK,
            **_DRIVER,
        )
    except Exception as error:  # Ray raises many types, bare Exception too
        raise RecipeError(f"Ray does not start on this machine: {reason(error)}") from error
    return context.dashboard_url if dashboard else None


def _address(recipe: Recipe) -> str | None:
    return recipe.cluster.address or os.environ.get("RAY_ADDRESS") or None


def _prepare_environment() -> None:
    """Set Ray's variables. Called before Ray is imported, which reads some of them once."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _write_control(directory: Path) -> None:
    """Written to another name and renamed, so that `status` never reads half of it."""
    partial = directory / f"{CONTROL_FILE}.partial"
    address = _ray().get_runtime_context().gcs_address
    try:
        with refused_if_full(directory):
            partial.touch(mode=0o600)
            partial.chmod(0o600)
            partial.write_text(json.dumps({"address": address, "namespace": NAMESPACE, "pid": os.getpid()}))
            os.replace(partial, directory / CONTROL_FILE)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _is_driver() -> bool:
    """Whether this process has a cluster already. Importing Ray to ask would be too early for its variables."""
    return "ray" in sys.modules and _ray().is_initialized()


def _ray() -> Any:
    import ray

    return ray
