"""A gRPC client behind the proxy, which it learns of from its environment as any other would.

Arguments: the target, and what to do. Prints one line of JSON.
"""

import hashlib
import json
import os
import queue
import sys


import grpc

PATIENCE = 60


def sha(data):
    return hashlib.sha256(data).hexdigest()


class All:
    def __init__(self, target, options=()):
        options = [("grpc.max_receive_message_length", -1), *options]
        self.channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)

    def unary(self, method):
        return self.channel.unary_unary(f"/test.All/{method}")

    def down(self, method):
        return self.channel.unary_stream(f"/test.All/{method}")

    def up(self, method):
        return self.channel.stream_unary(f"/test.All/{method}")

    def both(self, method):
        return self.channel.stream_stream(f"/test.All/{method}")


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        trailing = {name: value for name, value in error.trailing_metadata() or ()}
        return {"code": error.code().name, "details": error.details(), "why": trailing.get("x-why")}
    return None


def unary(api):
    answer, call = api.unary("Echo").with_call(b"hello", timeout=PATIENCE)
    first, last = dict(call.initial_metadata()), dict(call.trailing_metadata())
    large = os.urandom(4 << 20)
    zipped = b"text " * 100_000
    token = os.environ["EXAMPLE_KEY"]
    seen = api.unary("Seen")
    fields = (("authorization", f"Bearer {token}"), ("x-plain", "kept"), ("te-x", "1"))
    basic = api.unary("Echo")(b"x", timeout=PATIENCE, metadata=(("x-any", token),))
    return {
        "answer": answer.decode(),
        "first": first["x-first"],
        "raw": first["x-raw-bin"] == bytes(range(256)),
        "last": last["x-last"],
        "sum": last["x-sum-bin"] == hashlib.sha256(b"hello").digest(),
        "empty": api.unary("Echo")(b"", timeout=PATIENCE) == b"",
        "large": sha(api.unary("Echo")(large, timeout=PATIENCE)) == sha(large),
        "zipped": api.unary("Echo")(
            zipped, timeout=PATIENCE, compression=grpc.Compression.Gzip) == zipped,
        "seen": json.loads(seen(b"", timeout=PATIENCE, metadata=fields)),
        "any": basic.decode(),
        "fail": failure(lambda: api.unary("Fail")(b"", timeout=PATIENCE)),
        "unknown": failure(lambda: api.unary("Nowhere")(b"", timeout=PATIENCE)),
    }


def streams(api):
    counted = [int(piece) for piece in api.down("Count")(b"1000", timeout=PATIENCE)]
    late, got = api.down("LateFail")(b"3", timeout=PATIENCE), []

    def drain():
        for piece in late:
            got.append(piece.decode())

    ended = failure(drain)
    pieces = [os.urandom(size) for size in (0, 1, 70_000, 5, 200_000)] * 5
    total = api.up("Total")(iter(pieces), timeout=PATIENCE).decode()
    # One message goes only when the answer to the one before is there.
    asked = queue.Queue()
    answers = api.both("Talk")(iter(asked.get, None), timeout=PATIENCE)
    talked = []
    for index in range(50):
        asked.put(str(index).encode())
        talked.append(next(answers).decode())
    asked.put(None)
    rest = list(answers)
    return {
        "counted": counted == list(range(1000)),
        "late": {"got": got, "end": ended},
        "total": total == f"{sum(map(len, pieces))} {sha(b''.join(pieces))}",
        "talked": talked == [f"re: {index}" for index in range(50)],
        "rest": len(rest),
    }


def cancel(api):
    deadline = failure(lambda: api.unary("Wait")(b"deadline", timeout=1))
    begun = api.down("WaitStream")(b"cancelled", timeout=PATIENCE)
    first = next(begun)
    begun.cancel()
    after = api.unary("Echo")(b"after", timeout=PATIENCE)
    return {
        "deadline": deadline and deadline["code"],
        "first": first.decode(),
        "cancelled": begun.code().name,
        "after": after.decode(),
    }


def parallel(api):
    # The first one makes the connection.
    api.unary("Echo")(b"", timeout=PATIENCE)
    meet = api.unary("Meet")
    calls = [meet.future(str(index).encode(), timeout=PATIENCE) for index in range(50)]
    answers = [call.result().decode() for call in calls]
    return {"answers": answers == [str(index) for index in range(50)]}


def hold(api):
    """Leaves a call open until something ends it."""
    call = api.down("WaitStream")(b"held", timeout=PATIENCE)
    next(call)
    print(json.dumps({"held": True}), flush=True)
    return {"end": failure(lambda: next(call))}


def main():
    target, what = sys.argv[1:3]
    doings = {f.__name__: f for f in (unary, streams, cancel, parallel, hold)}
    api = All(target)
    done = doings[what](api)
    api.channel.close()
    print(json.dumps(done), flush=True)


main()
