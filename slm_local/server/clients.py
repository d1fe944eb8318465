"""One client of the link: says who it is, has a model opened, and speaks to its engine as a parent to its child."""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

from slm_local.errors import Interrupted, SlmError
from slm_local.generation import Control, Done, GenerationRequest, Prepared, StateMoved, StateOrder, TokenOrder
from slm_local.metrics import Collector
from slm_local.paths import paths
from slm_local.server.pool import Attachment, Pool, Running
from slm_local.system import bound_sends
from slm_local.worker import Worker
from slm_local.worker.attached import LINK, STALL_S, proof

HELLO_S = 5.0
"""Longest wait for a client to prove itself."""

LONGEST_HELLO = 4096
LONGEST_LINE = 64 * 2**20
"""Bytes; a prompt that fills any model's context is a few million."""

Jobs = Callable[[int, dict[str, Any], Control], None]


class Client:
    """A connection of the user's own. `serve` reads it to its end."""

    def __init__(self, connection: socket.socket, pool: Pool, key: str, leave: Callable[[], None]) -> None:
        """Take a connection; `leave` has the server give way to another one."""
        self._socket, self._pool, self._key, self._leave_place = connection, pool, key, leave
        self._lines = connection.makefile("rb")
        self._sending = threading.Lock()
        self._attachment: Attachment | None = None
        self._opening = Control()
        self._controls: dict[int, Control] = {}
        """Of what is under way, and of what was cancelled before it began."""
        self._guarding = threading.Lock()
        self._newest_id = 0
        self.is_known = False
        """Whether it has proved to be the user's."""

    def serve(self) -> None:
        """Do what the client asks until it hangs up; then all that is under way for it is cancelled."""
        try:
            self._socket.settimeout(HELLO_S)
            self.is_known = self._is_the_user()
            if self.is_known:
                self._socket.settimeout(None)
                bound_sends(self._socket, STALL_S)
                self._follow()
        except (OSError, ValueError, KeyError, TypeError):
            pass  # gone, or no client of ours: nobody is there to be told
        finally:
            self.hang_up()
            self._let_go()
            self._lines.close()
            self._socket.close()

    def hang_up(self) -> None:
        """End the connection, from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _is_the_user(self) -> bool:
        """Prove to know the key, and tell whether the client does."""
        asked, given = str(json.loads(self._lines.readline(LONGEST_HELLO))["nonce"]), secrets.token_hex(16)
        self._send({"op": "hello", "nonce": given, "proof": proof(self._key, "server", asked, given)})
        shown = str(json.loads(self._lines.readline(LONGEST_HELLO))["proof"])
        return hmac.compare_digest(shown, proof(self._key, "client", asked, given))

    def _follow(self) -> None:
        while line := self._lines.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError("the line is too long")
            message = LINK.from_line(line)
            request_id = int(message.get("id", 0))
            match message["op"]:
                case "open":
                    self._begin(0, message, self._opening, self._open)
                case "start" | "prepare" | "state" | "tokens" as op:
                    jobs = {"start": self._stream, "prepare": self._prepare, "state": self._move_state}
                    control = self._control_of(request_id, begins=True)
                    self._begin(request_id, message, control, jobs.get(op, self._tokens))
                case "cancel":
                    self._control_of(request_id).cancel()
                case "end_thinking":
                    self._control_of(request_id).end_thinking()
                case "ps":
                    self._send({"op": "running", "models": [values_of(each) for each in self._pool.running()]})
                case "stop":
                    self._begin(0, message, Control(), self._stop)
                case "free":
                    self._begin(0, message, Control(), self._free)
                case "leave":
                    self._begin(0, message, Control(), self._leave)
                case "close":
                    return
                case unknown:
                    raise ValueError(f"{unknown!r} is nothing that can be asked")

    def _control_of(self, request_id: int, *, begins: bool = False) -> Control:
        """Return the control of a request, which may be cancelled before it begins; ids count upwards."""
        with self._guarding:
            is_over = request_id <= self._newest_id and request_id not in self._controls
            if begins:
                self._newest_id = max(self._newest_id, request_id)
            return Control() if is_over else self._controls.setdefault(request_id, Control())

    def _begin(self, request_id: int, message: dict[str, Any], control: Control, job: Jobs) -> None:
        arguments = (request_id, message, control, job)
        threading.Thread(target=self._do, args=arguments, name="slm-link-request", daemon=True).start()

    def _do(self, request_id: int, message: dict[str, Any], control: Control, job: Jobs) -> None:
        try:
            job(request_id, message, control)
        except SlmError as error:
            self._tell(request_id, "failed", record=error.record())
        except Exception as error:
            traceback.print_exc()
            bug = SlmError(
                f"a bug of slm in the server: {type(error).__name__}: {error}", hint=f"its log is in {paths().logs}"
            )
            self._tell(request_id, "failed", record=bug.record())
        finally:
            with self._guarding:
                self._controls.pop(request_id, None)

    def _open(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        if self._attachment is not None:
            raise SlmError("this connection has a model open already")
        attachment = self._pool.attach(
            message["reference"],
            message["settings"],
            control,
            on_status=lambda text: self._tell(request_id, "status", text=text),
            keep_alive_s=message["keep_alive_s"],
        )
        with self._guarding:
            self._attachment = attachment
        if control.cancelled:  # the client went away meanwhile
            self._let_go()
        maker = attachment.maker
        self._tell(request_id, "opened", plan=maker.plan, facts=attachment.engine.facts, notes=maker.notes)

    def _stream(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        request = message["request"]
        assert isinstance(request, GenerationRequest)
        try:
            with self._attached().lease(control) as lease:
                for event in lease.engine.worker(control).stream(request, control):
                    self._tell(request_id, "event", event=event)
        except Interrupted:
            if not control.cancelled:
                raise
            self._tell(request_id, "event", event=Done(reply=Collector().reply("cancelled")))

    def _prepare(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        worker = self._worker()
        if worker is None:
            over = Prepared(held_tokens=0, total_tokens=0, note="the model was closed meanwhile")
            self._tell(request_id, "event", event=over)
            return
        for event in worker.prepare(message["request"], control):
            self._tell(request_id, "event", event=event)

    def _move_state(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        order, worker = message["order"], self._worker()
        assert isinstance(order, StateOrder)
        moved = StateMoved(tokens=0, note="the model was closed meanwhile")
        self._tell(request_id, "event", event=moved if worker is None else worker.move_state(order))

    def _tokens(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        order, worker = message["order"], self._worker()
        assert isinstance(order, TokenOrder)
        if worker is not None:  # beside all that streams
            tokens = worker.tokens(order)
        else:
            with self._attached().lease(control) as lease:
                tokens = lease.engine.tokens(order)
        self._tell(request_id, "tokens", tokens=tokens)

    def _stop(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        self._tell(request_id, "stopped", models=self._pool.stop(message["reference"]))

    def _free(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        self._tell(request_id, "stopped", models=self._pool.free(message["target"]))

    def _leave(self, request_id: int, message: dict[str, Any], control: Control) -> None:
        self._leave_place()
        self._tell(request_id, "left")

    def _attached(self) -> Attachment:
        if self._attachment is None:
            raise SlmError("no model was opened on this connection")
        return self._attachment

    def _worker(self) -> Worker | None:
        """Return the engine that is open for the client; None where it was closed for another one."""
        return self._attached().engine.running

    def _let_go(self) -> None:
        with self._guarding:
            controls = [self._opening, *self._controls.values()]
            attachment, self._attachment = self._attachment, None
        for control in controls:
            control.cancel()
        if attachment is not None:
            attachment.close()

    def _tell(self, request_id: int, op: str, **values: Any) -> None:
        with contextlib.suppress(OSError):  # gone: whoever reads the connection sees it
            self._send({"op": op, "id": request_id, **values})

    def _send(self, message: dict[str, Any]) -> None:
        line = LINK.to_line(message)
        with self._sending:
            try:
                self._socket.sendall(line)
            except OSError:
                self.hang_up()  # a line may be half sent; whoever reads the connection lets go of all that is held
                raise


def values_of(running: Running) -> dict[str, Any]:
    """Return the JSON object that docs/cli.md lists for `slm ps`."""
    plan = running.plan
    return {
        "model": running.model,
        "reference": running.reference,
        "state": "loading" if plan is None else "answering" if running.live else "idle",
        "backend": plan.backend if plan is not None else None,
        "device": plan.device if plan is not None else None,
        "quant": plan.variant.quant if plan is not None else None,
        "context_tokens": plan.context_tokens if plan is not None else None,
        "pid": running.pid,
        "memory_bytes": running.memory_bytes,
        "live": running.live,
        "waiting": running.waiting,
        "attached": running.attached,
        "is_needed": bool(running.live or running.waiting or running.attached),
        "idle_s": round(running.idle_s, 1),
        "expires_s": None if running.expires_s is None else round(running.expires_s, 1),
    }
