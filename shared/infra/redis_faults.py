"""What is wrong with Redis, from an error of redis-py or kombu: in the farm's words, with what an operator does about it."""

import re

from shared.errors import BrokerUnavailable

_CA = "append ?ssl_ca_certs=FILE to FARM_REDIS_URL, a file with the certificate of its CA"
# By what an error says; the first that fits. redis-py takes the word that Redis begins with off some, so both are looked for.
_FAULTS = (
    (
        r"used memory > 'maxmemory'",
        "Redis is out of memory",
        "raise its maxmemory, or remove from it what is not the farm's",
    ),
    (r"read only replica", "Redis is a read-only replica", "name the primary in FARM_REDIS_URL"),
    (r"loading the dataset", "Redis is still loading its data", "wait; for long, read its log"),
    (r"NOREPLICAS", "Redis lacks the replicas that it wants for a write", "start them, or lower min-replicas-to-write"),
    (r"MASTERDOWN", "Redis is a replica that has lost its primary", "name the primary in FARM_REDIS_URL"),
    (r"No space left", "Redis has no space left on its disk", "make room there"),
    (r"MISCONF", "Redis cannot save to its disk", "read its log, and mend its disk"),
    (r"no permissions|NOPERM", "Redis does not let this user do that", "give the user of FARM_REDIS_URL all rights"),
    (
        r"username-password|[Aa]uthenticat|NOAUTH|AUTH.*password",
        "Redis does not accept the user or the password",
        "check FARM_REDIS_URL",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED.*(mismatch|not valid for)",
        "Redis shows a certificate for another host",
        "write the host in FARM_REDIS_URL as its certificate does",
    ),
    (r"CERTIFICATE_VERIFY_FAILED.*expired", "The certificate of Redis has expired", "renew it"),
    (r"CERTIFICATE_VERIFY_FAILED", "Redis shows a certificate that this machine does not trust", _CA),
    (
        r"certificate.required|handshake.failure|peer did not return a certificate",
        "Redis wants a certificate of its clients",
        "append ?ssl_certfile=FILE&ssl_keyfile=FILE to FARM_REDIS_URL",
    ),
    (r"\[SSL", "Redis does not speak TLS there", "write redis:// in FARM_REDIS_URL, or the port that speaks TLS"),
    (
        # In TLS 1.3 a client that shows no certificate has shaken hands already: what says so may come behind the end.
        r"while (reading|writing)|[Cc]onnection (closed|reset)|reset by peer|[Bb]roken pipe|EOF occurred|Protocol Error",
        "Redis breaks off the connection",
        "read its log; if this port speaks TLS, write rediss:// in FARM_REDIS_URL; if it wants a certificate of its clients,"
        " append ?ssl_certfile=FILE&ssl_keyfile=FILE",
    ),
    (
        r"Timeout connecting",
        "Redis does not answer",
        "start it, or check FARM_REDIS_URL; rediss:// is for a port that speaks TLS",
    ),
)


def explained(error: Exception) -> BrokerUnavailable:
    """Return the farm's error for one of a client of Redis, which becomes its cause."""
    for pattern, what, fix in _FAULTS:
        if re.search(pattern, str(error)):
            fault = BrokerUnavailable(f"{what}.", fix=fix)
            break
    else:
        fault = BrokerUnavailable()
    fault.__cause__ = error
    return fault
