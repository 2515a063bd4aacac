"""Peers: other programs that move files, each as a server of its own on this machine, set up in a temporary folder.

A ``Peer`` knows its programs and Debian packages, writes the server's configuration, and builds the command lines; it
runs nothing itself. ``Method`` is one way to use it. Where a setting could cost a peer speed the quicker one is chosen:
the peers verify and sync less than we do, and are to be at their best.

    rsync     daemon; push and pull; with and without --fsync
    nginx     PUT (WebDAV) and GET, with curl
    vsftpd    upload and download, with curl
    OpenSSH   scp over a private sshd with generated keys
"""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from .processes import HOST, Server, find_program, free_port

SSHD_ROOT_FOLDER = Path("/run/sshd")
"""sshd asks for this empty folder when root starts it; Debian's service makes it the same way."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way to use a peer, as command lines; None where it has no such way or nobody asks for it.

    Attributes:
        name: what the tables call it.
        put: sends a file into the served folder, under its own name.
        get: fetches a file of the served folder to a path.
        put_folder: sends a folder into the served folder, under its own name.
        get_folder: fetches a folder of the served folder into a folder, under its own name.
        skips: whether a second run of the same sends nothing.
    """

    name: str
    put: Callable[[Path], list[str]] | None = None
    get: Callable[[str, Path], list[str]] | None = None
    put_folder: Callable[[Path], list[str]] | None = None
    get_folder: Callable[[str, Path], list[str]] | None = None
    skips: bool = False


class Peer(Protocol):
    """A program beside which we are measured.

    Attributes:
        name: of the program.
        packages: program → the Debian package that has it.
    """

    name: ClassVar[str]
    packages: ClassVar[dict[str, str]]

    def server_command(self, work: Path, served: Path, port: int) -> list[str]:
        """Write the configuration into ``work`` and return the server's command line; it stays in the foreground."""

    def methods(self, work: Path, served: Path, port: int) -> list[Method]:
        """The ways to use it, once the server runs."""


def missing_packages(peer: Peer) -> list[str]:
    """The Debian packages that would have to be installed for ``peer``."""
    return sorted({package for program, package in peer.packages.items() if find_program(program) is None})


class Rsync:
    """An rsync daemon. Verifies whole files (xxh128), syncs with ``--fsync`` only."""

    name: ClassVar[str] = "rsync"
    packages: ClassVar[dict[str, str]] = {"rsync": "rsync"}

    def server_command(self, work: Path, served: Path, port: int) -> list[str]:
        """See Peer."""
        user = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
        config = work / "rsyncd.conf"
        config.write_text(
            f"address = {HOST}\nport = {port}\nuse chroot = no\nlog file = {work}/rsyncd.log\n"
            f"pid file = {work}/rsyncd.pid\n{user}[files]\npath = {served}\nread only = no\n"
        )
        return [_program("rsync"), "--daemon", "--no-detach", f"--config={config}"]

    def methods(self, work: Path, served: Path, port: int) -> list[Method]:
        """See Peer; ``--fsync`` came with rsync 3.2.4."""
        plain = self._method("rsync", port)
        if "--fsync" not in _output_of([_program("rsync"), "--help"]):
            return [plain]
        return [plain, self._method("rsync --fsync", port, "--fsync")]

    def _method(self, name: str, port: int, *options: str) -> Method:
        """One way, of whole files: comparing parts of them costs more than to send them."""
        where = f"rsync://{HOST}:{port}/files/"
        rsync = [_program("rsync"), "-aW", *options]

        def push(path: Path) -> list[str]:
            return [*rsync, str(path), where]

        def pull(wanted: str, dest: Path) -> list[str]:
            return [*rsync, where + wanted, str(dest)]

        return Method(name, push, pull, push, pull, skips=True)


class Nginx:
    """An nginx with WebDAV, used from curl. Neither verifies nor syncs."""

    name: ClassVar[str] = "nginx"
    packages: ClassVar[dict[str, str]] = {"nginx": "nginx-light", "curl": "curl"}

    def server_command(self, work: Path, served: Path, port: int) -> list[str]:
        """See Peer. Bodies are received on the served folder's own file system, so that a PUT ends with a rename."""
        user = f"user {getpass.getuser()};\n" if os.geteuid() == 0 else ""
        incoming = served.parent / f"{served.name}-incoming"
        incoming.mkdir(exist_ok=True)
        unused = "".join(
            f"{kind}_temp_path {work}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = work / "nginx.conf"
        config.write_text(
            f"{user}daemon off;\nworker_processes 1;\npid {work}/nginx.pid;\nerror_log {work}/nginx.log;\n"
            "events { worker_connections 64; }\n"
            f"http {{\naccess_log off;\nsendfile on;\ntcp_nopush on;\n{unused}"
            f"client_body_temp_path {incoming};\nclient_max_body_size 0;\nclient_body_buffer_size 1m;\n"
            f"server {{\nlisten {HOST}:{port};\nroot {served};\ndav_methods PUT;\n}}\n}}\n"
        )
        return [_program("nginx"), "-p", str(work), "-e", f"{work}/nginx.log", "-c", str(config)]

    def methods(self, work: Path, served: Path, port: int) -> list[Method]:
        """See Peer."""
        where = f"http://{HOST}:{port}/"
        return [
            Method("nginx PUT", put=lambda path: _curl("-T", str(path), "-H", "Expect:", where + path.name)),
            Method("nginx GET", get=lambda name, dest: _curl("-o", str(dest), where + name)),
        ]


class Vsftpd:
    """A vsftpd for anonymous users, used from curl. Neither verifies nor syncs."""

    name: ClassVar[str] = "vsftpd"
    packages: ClassVar[dict[str, str]] = {"vsftpd": "vsftpd", "curl": "curl"}

    def server_command(self, work: Path, served: Path, port: int) -> list[str]:
        """See Peer. It runs as the user who started it: a server for this benchmark alone, on loopback."""
        empty = work / "vsftpd-empty"
        empty.mkdir(exist_ok=True)
        config = work / "vsftpd.conf"
        settings = {
            "listen": "YES",
            "background": "NO",
            "listen_address": HOST,
            "listen_port": str(port),
            "run_as_launching_user": "YES",
            "anonymous_enable": "YES",
            "no_anon_password": "YES",
            "anon_root": str(served),
            "anon_world_readable_only": "NO",
            "anon_upload_enable": "YES",
            "anon_umask": "022",
            "write_enable": "YES",
            "allow_writeable_chroot": "YES",
            "secure_chroot_dir": str(empty),
            "xferlog_enable": "NO",
            "seccomp_sandbox": "NO",
            "isolate": "NO",
            "isolate_network": "NO",
        }
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return [_program("vsftpd"), str(config)]

    def methods(self, work: Path, served: Path, port: int) -> list[Method]:
        """See Peer."""
        where = f"ftp://{HOST}:{port}/"
        return [
            Method(
                "vsftpd",
                put=lambda path: _curl("-T", str(path), where + path.name),
                get=lambda name, dest: _curl("-o", str(dest), where + name),
            )
        ]


class OpenSsh:
    """A private sshd with keys of its own, used with scp. Encrypts; its MAC protects the way, nothing syncs."""

    name: ClassVar[str] = "scp"
    ciphers: ClassVar[str | None] = None
    """What the client offers; None: what it prefers by itself."""
    packages: ClassVar[dict[str, str]] = {
        "sshd": "openssh-server",
        "scp": "openssh-client",
        "ssh-keygen": "openssh-client",
    }

    def server_command(self, work: Path, served: Path, port: int) -> list[str]:
        """See Peer."""
        for name in ("host_key", "user_key"):
            _output_of([_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", f"{work}/{name}"])
        if os.geteuid() == 0 and not SSHD_ROOT_FOLDER.exists():
            SSHD_ROOT_FOLDER.mkdir(mode=0o755)
        config = work / "sshd_config"
        config.write_text(
            f"ListenAddress {HOST}:{port}\nHostKey {work}/host_key\nPidFile {work}/sshd.pid\n"
            f"AuthorizedKeysFile {work}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        return [_program("sshd"), "-D", "-e", "-f", str(config)]

    def methods(self, work: Path, served: Path, port: int) -> list[Method]:
        """See Peer."""
        config = work / "ssh_config"
        config.write_text(
            f"Host bench\nHostName {HOST}\nPort {port}\nUser {getpass.getuser()}\nIdentityFile {work}/user_key\n"
            "IdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking no\n"
            f"UserKnownHostsFile {work}/known_hosts\nLogLevel ERROR\n"
            + (f"Ciphers {self.ciphers}\n" if self.ciphers else "")
        )
        scp = [_program("scp"), "-q", "-F", str(config)]
        return [
            Method(
                self.name,
                put=lambda path: [*scp, str(path), f"bench:{served}/"],
                get=lambda name, dest: [*scp, f"bench:{served}/{name}", str(dest)],
                put_folder=lambda path: [*scp, "-r", str(path), f"bench:{served}/"],
                get_folder=lambda name, dest: [*scp, "-r", f"bench:{served}/{name}", str(dest)],
            )
        ]


class OpenSshAes(OpenSsh):
    """The same with the cipher that is quickest where processors have AES, as TLS chooses it too."""

    name: ClassVar[str] = "scp-aes128-gcm"
    ciphers: ClassVar[str | None] = "aes128-gcm@openssh.com"


PEERS: tuple[Peer, ...] = (Rsync(), Nginx(), Vsftpd(), OpenSsh())
"""Everybody we are measured beside, in the order of the tables."""


@dataclass(frozen=True, slots=True)
class Running:
    """A peer whose server runs.

    Attributes:
        peer: which.
        served: the folder it serves.
        server: its process.
        methods: the ways to use it.
    """

    peer: Peer
    served: Path
    server: Server
    methods: list[Method]


def start_peer(peer: Peer, place: Path) -> Running:
    """Start a peer's server on folders of its own in ``place``.

    Raises:
        CommandFailed: it does not come up.
    """
    work, served = place / f"{peer.name}-work", place / f"{peer.name}-served"
    work.mkdir()
    served.mkdir()
    port = free_port()
    server = Server(peer.server_command(work, served, port), work / "server.log", port)
    return Running(peer, served, server, peer.methods(work, served, port))


def _program(name: str) -> str:
    """The path of a program; sshd insists on a whole one."""
    return find_program(name) or name


def _curl(*arguments: str) -> list[str]:
    return [_program("curl"), "-sS", "--fail", "--noproxy", "*", *arguments]


def _output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout.decode()
