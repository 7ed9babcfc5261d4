"""What operators are told of errors as redis-py and kombu raise them."""

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as BrokenError
from redis.exceptions import TimeoutError as LateError

from shared.infra.redis_faults import explained

VERIFY = "Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "


@pytest.mark.parametrize(
    ("error", "says", "do"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "out of memory", "maxmemory"),
        (ReadOnlyError("You can't write against a read only replica."), "read-only replica", "primary"),
        (BusyLoadingError("Redis is loading the dataset in memory"), "loading its data", "wait"),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "lacks the replicas", "min-replicas"),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "space left", "make room"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots, but"), "cannot save", "disk"),
        (AuthenticationError("invalid username-password pair or user is disabled."), "the password", "FARM_REDIS_URL"),
        (AuthenticationError("Authentication required."), "the password", "FARM_REDIS_URL"),
        (AuthenticationError("HELLO must be called with the client already authenticated"), "the password", "check"),
        (BrokenError(f"{VERIFY}self-signed certificate (_ssl.c:1006)."), "does not trust", "?ssl_ca_certs=FILE"),
        (BrokenError(f"{VERIFY}IP address mismatch, certificate is not valid for 'h'."), "another host", "host"),
        (BrokenError(f"{VERIFY}certificate has expired (_ssl.c:1006)."), "expired", "renew"),
        (
            BrokenError("Error 1 connecting. [SSL: WRONG_VERSION_NUMBER] wrong version number"),
            "not speak TLS",
            "redis://",
        ),
        (
            BrokenError("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] certificate required"),
            "of its clients",
            "ssl_certfile",
        ),
        (BrokenError("Error while reading from h:1 : (104, 'Connection reset by peer')"), "breaks off", "rediss://"),
        (BrokenError("Error 32 while writing to socket. Broken pipe."), "breaks off", "ssl_certfile"),
        (LateError("Timeout connecting to server"), "does not answer", "rediss:// is for a port that speaks TLS"),
        (BrokenError("Error 111 connecting to h:1. Connection refused."), "does not answer", "start Redis"),
    ],
)
def test_the_fault_is_named_with_its_remedy(error: RedisError, says: str, do: str) -> None:
    fault = explained(error)
    assert says in str(fault)
    assert do in fault.fix
    assert fault.log_fields["cause"] == str(error)
