"""A gRPC server over TLS whose messages are bytes, so that no generated code is needed.

Arguments: certificate chain, key. Prints a line of JSON with its port, then one for each event that
a test has to know of. It ends when its standard input does.
"""

import hashlib
import json
import sys
import threading
from concurrent import futures

import grpc

PARALLEL = 50
lock = threading.Lock()
together = threading.Barrier(PARALLEL)


def tell(**event):
    with lock:
        print(json.dumps(event), flush=True)


def metadata(context):
    return dict(context.invocation_metadata())


def echo(request, context):
    context.send_initial_metadata((("x-first", "1"), ("x-raw-bin", bytes(range(256)))))
    context.set_trailing_metadata((("x-last", "2"), ("x-sum-bin", hashlib.sha256(request).digest())))
    return request


def seen(_request, context):
    """Says by hash which credentials arrived, and what else."""
    found = metadata(context)
    credentials = hashlib.sha256(found.get("authorization", "").encode()).hexdigest()
    return json.dumps({
        "authorization": credentials,
        "x-plain": found.get("x-plain"),
        "names": sorted(found),
    }).encode()


def fail(_request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "nothing here: 100 % \u00fc")


def late_fail(request, context):
    for index in range(int(request)):
        yield str(index).encode()
    context.abort(grpc.StatusCode.OUT_OF_RANGE, "that was all")


def count(request, _context):
    for index in range(int(request)):
        yield str(index).encode()


def total(requests, _context):
    size, digest = 0, hashlib.sha256()
    for request in requests:
        size += len(request)
        digest.update(request)
    return f"{size} {digest.hexdigest()}".encode()


def talk(requests, _context):
    for request in requests:
        yield b"re: " + request


def wait(request, context):
    """Never answers: it waits for the end of the call, and says that it came."""
    over = threading.Event()
    context.add_callback(over.set)
    tell(event="waiting", call=request.decode())
    over.wait(30)
    tell(event="over", call=request.decode(), active=context.is_active())
    return b""


def wait_stream(request, context):
    over = threading.Event()
    context.add_callback(over.set)
    yield b"begun"
    tell(event="waiting", call=request.decode())
    over.wait(30)
    tell(event="over", call=request.decode(), active=context.is_active())


def meet(request, _context):
    """Answers when so many calls are here at the same time."""
    together.wait(30)
    return request


def main():
    chain, key = (open(path, "rb").read() for path in sys.argv[1:3])
    unary = grpc.unary_unary_rpc_method_handler
    down = grpc.unary_stream_rpc_method_handler
    handlers = {
        "Echo": unary(echo), "Seen": unary(seen), "Fail": unary(fail), "Wait": unary(wait),
        "Meet": unary(meet), "Count": down(count), "LateFail": down(late_fail),
        "WaitStream": down(wait_stream),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
    }
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=PARALLEL + 14),
        options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.All", handlers)])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server.start()
    tell(event="port", port=port)
    sys.stdin.read()
    server.stop(0)


main()
