"""Databases, broker and settings of the product in containers, from the code that provisions the local stack.

    secrets DIRECTORY     compose: make every secret at the first start
    provision DIRECTORY   compose: create or update the cell, then write each process's settings file
    migrate               Kubernetes: create or update the cell on the servers that the environment names
    kind-secrets          Kubernetes: print new Secrets for the overlay `kind`, to be applied once

Doing any of them again changes nothing but what is new. `DIRECTORY` has one folder, a volume, for each process: a
process sees its own and no other.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))

from applications import PREFERRED_PORTS, SIMULATORS, Applications, Place
from credentials import Credentials, load_or_create
from postgres import SUPERUSER, url
from provision import Broker, Cell, ProvisionFailure, Servers, check_rights
from rabbitmq import ADMIN, RELAY, SERVICES, VHOST, Management, definitions, password_hash

PORT = 8080
"""Of every process, in its own container."""

MONITOR = "monitor"
"""The broker user that may only look at the length of queues: KEDA's."""

_ADMIN_ROLE = "sangam_admin"
_SECRET_SETTINGS = (
    "DATABASE_URL",
    "EVENT_STORE_URL",
    "AMQP_URL",
    "SUBJECT_",
    "CURSOR_SECRET",
    "IDENTITY_KEY",
    "GATEWAY_KEY",
    "OPS_CLIENT_",
    "VAPID_PRIVATE_KEY",
    "FEED_SECRET",
    "ANNOUNCE_SECRET",
)
_DATA = Path("/data")
_NOT_SETTINGS = ("PATH", "LANG", "TZ")
# Compose gives these containers fixed addresses: two settings name addresses, not hosts.
_LAST_NUMBER = {"nginx": 10, SIMULATORS["bfc"]: 21, SIMULATORS["vyomo"]: 22}


def host_of(process: str) -> str:
    """The name by which containers find each other: a host name has no underscore."""
    return process.replace("_", "-")


def make_secrets(directory: Path) -> None:
    """Every secret of the stack, and what the two servers read at their start."""
    credentials = load_or_create(directory / "secrets" / "secrets.json")
    # The servers run as users of their own images; their volume holds nothing else.
    for path, text in {
        "postgres/password": credentials.passwords[SUPERUSER],
        "rabbitmq/definitions.json": json.dumps(definitions(VHOST, _broker_passwords(credentials))),
    }.items():
        file = directory / path
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(0o444)


def provision_compose(directory: Path, environ: Mapping[str, str]) -> None:
    """The cell on the containers `postgres` and `rabbitmq`, and a settings file for each process."""
    credentials = load_or_create(directory / "secrets" / "secrets.json")
    servers = servers_of_compose(credentials)
    Cell(servers).create()
    settings = settings_of(servers, credentials, origin=environ["ORIGIN_URL"], network=environ["SANGAM_NETWORK"])
    for process, values in settings.items():
        _write_settings(directory / process, values)


def servers_of_compose(credentials: Credentials) -> Servers:
    passwords = credentials.passwords
    return Servers(
        url(SUPERUSER, passwords[SUPERUSER], "postgres", 5432, "postgres"),
        Broker("rabbitmq", 5672, Management("http://rabbitmq:15672", ADMIN, passwords[ADMIN])),
        _broker_passwords(credentials),
    )


def settings_of(servers: Servers, credentials: Credentials, *, origin: str, network: str) -> dict[str, dict[str, str]]:
    """The environment of each process by the name of its host, and of `tools`: what a person works with.

    Args:
        origin: as clients know it.
        network: the first three numbers of the addresses in compose.
    """
    cell = Cell(servers, exists=True)
    applications = Applications(
        _DATA,
        cell=cell,
        credentials=credentials,
        places={name: Place(PORT, host_of(name), f"{network}.{_LAST_NUMBER.get(name, 0)}") for name in PREFERRED_PORTS},
        origin=origin,
        listen_on="0.0.0.0",  # noqa: S104 - of its own container
        feeds_to=f"http://nginx:{PORT}",
        extra={"identity": {"TRUSTED_PROXIES": f"{network}.{_LAST_NUMBER['nginx']}"}},
    )
    settings = {
        host_of(program.name): {name: value for name, value in program.environment.items() if name not in _NOT_SETTINGS}
        for program in (*applications.relays(), *applications.services(), *applications.simulators())
    }
    settings["tools"] = {
        "ORIGIN_URL": f"http://nginx:{PORT}",
        "AMQP_URL": cell.amqp_url(),
        "EVENT_STORE_URL": cell.admin_url(),
        "RABBITMQ_MANAGEMENT_URL": "http://rabbitmq:15672",
        **{f"{platform.upper()}_URL": applications.url(name) for platform, name in SIMULATORS.items()},
        **{f"FEED_SECRET_{name.upper()}": secret for name, secret in credentials.feed_secrets.items()},
        "OPS_CLIENT_ID": credentials.ops_client_id,
        "OPS_CLIENT_SECRET": credentials.ops_client_secret,
        "DEMO_EMAIL": credentials.demo_email,
        "DEMO_PASSWORD": credentials.demo_password,
    }
    return settings


def migrate(environ: Mapping[str, str]) -> None:
    """The cell on servers that others run.

    Raises:
        ProvisionFailure: the administrator may not do what is needed.
        KeyError: a variable is missing; it is named.
    """
    passwords = {name: environ[f"PASSWORD_{name.upper()}"] for name in (*SERVICES, RELAY)}
    management = Management(
        environ["RABBITMQ_MANAGEMENT_URL"], environ["RABBITMQ_USERNAME"], environ["RABBITMQ_PASSWORD"]
    )
    servers = Servers(environ["DATABASE_URL"], Broker("", 0, management), passwords)
    check_rights(servers)
    Cell(servers).create()
    if monitor := environ.get("PASSWORD_MONITOR"):
        management.define(monitoring_user(monitor))


def monitoring_user(password: str) -> dict[str, object]:
    """Broker definitions of a user who may look at queues and touch nothing."""
    return {
        "users": [
            {
                "name": MONITOR,
                "password_hash": password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "monitoring",
            }
        ],
        "permissions": [{"user": MONITOR, "vhost": VHOST, "configure": "^$", "write": "^$", "read": "^$"}],
    }


def kind_secrets(credentials: Credentials) -> dict[str, dict[str, str]]:
    """What ExternalSecrets make in production, under the same names, for a cluster that has no store of secrets."""
    passwords = credentials.passwords
    admin = url(_ADMIN_ROLE, passwords[SUPERUSER], "sangam-db-rw", 5432, "postgres")
    servers = Servers(
        f"{admin}?sslmode=verify-full&sslrootcert=/etc/sangam/database-ca/ca.crt",
        Broker("sangam-mq", 5672, None),
        _broker_passwords(credentials),
    )
    # Where processes are is said by the overlay; of the settings only what is secret is taken.
    settings = settings_of(servers, credentials, origin="", network="")
    settings["relay"] = settings["relay-1"]
    processes = ("relay", *map(host_of, SERVICES), *SIMULATORS.values())
    return {
        **{
            f"sangam-{process}": {
                name: value for name, value in settings[process].items() if name.startswith(_SECRET_SETTINGS)
            }
            for process in processes
        },
        "sangam-db-admin": {"username": _ADMIN_ROLE, "password": passwords[SUPERUSER]},
        "sangam-migrate": {
            "DATABASE_URL": servers.postgres_url,
            "RABBITMQ_MANAGEMENT_URL": "http://sangam-mq:15672",
            **{f"PASSWORD_{name.upper()}": passwords[name] for name in (*SERVICES, RELAY)},
        },
    }


def manifest_of(secrets: Mapping[str, Mapping[str, str]]) -> str:
    """The Secrets as `kubectl apply` takes them."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": "sangam", "labels": {"app.kubernetes.io/part-of": "sangam"}},
            "type": "kubernetes.io/basic-auth" if "username" in values else "Opaque",
            "stringData": values,
        }
        for name, values in secrets.items()
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)


def _broker_passwords(credentials: Credentials) -> dict[str, str]:
    return {user: password for user, password in credentials.passwords.items() if user != SUPERUSER}


def _write_settings(directory: Path, settings: Mapping[str, str]) -> None:
    """Replaced in one step; readable by the image's user alone."""
    beside = directory / ".settings.env"
    beside.unlink(missing_ok=True)
    beside.touch(mode=0o600)
    beside.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    beside.replace(directory / "settings.env")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("secrets", "provision"):
        commands.add_parser(name).add_argument("directory", type=Path)
    for name in ("migrate", "kind-secrets"):
        commands.add_parser(name)
    arguments = parser.parse_args()
    try:
        if arguments.command == "secrets":
            make_secrets(arguments.directory)
        elif arguments.command == "provision":
            provision_compose(arguments.directory, os.environ)
        elif arguments.command == "migrate":
            migrate(os.environ)
        else:
            with tempfile.TemporaryDirectory() as folder:
                print(manifest_of(kind_secrets(load_or_create(Path(folder, "secrets.json")))))
    except KeyError as missing:
        raise SystemExit(f"{missing.args[0]} is not set") from None
    except ProvisionFailure as failure:
        raise SystemExit(str(failure)) from None


if __name__ == "__main__":
    main()
