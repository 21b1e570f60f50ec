"""A workload that keeps to no rule of HTTP/2: it writes the frames it is told to.

Frames and header blocks come from hyperframe and hpack, which check nothing on the way out. One
line of JSON on stdin is one connection: where to, and the steps on it. One line of JSON on stdout
says what came back. Texts are Latin-1, so that any byte can stand in them.
"""

import json
import select
import socket
import ssl
import sys
import time

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame,
    SettingsFrame, WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 20.0


class Over(Exception):
    """The connection is no more."""


class Connection:
    def __init__(self, proxy, authorization, ca, target):
        self.tcp = socket.create_connection(proxy, timeout=PATIENCE)
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n"
        self.tcp.sendall(ask.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = self.tcp.recv(1)
            if not piece:
                raise Over("no answer to CONNECT")
            head += piece
        if b" 200" not in head.split(b"\r\n")[0]:
            raise Over(head.decode("latin-1"))
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
        self.tls = context.wrap_socket(self.tcp, server_hostname=target.rsplit(":", 1)[0])
        self.tls.setblocking(False)
        self.input = b""
        self.encoder, self.decoder = Encoder(), Decoder()
        self.block, self.block_flags = b"", set()
        self.windows = True
        self.said = {
            "alpn": self.tls.selected_alpn_protocol(), "settings": {}, "streams": {},
            "goaway": None, "closed": False, "late": False, "pongs": 0,
        }

    def stream(self, number):
        fresh = {"status": None, "fields": [], "body": "", "reset": None, "ended": False}
        return self.said["streams"].setdefault(str(number), fresh)

    # Bytes.

    def write(self, data):
        view = memoryview(data)
        while view:
            try:
                view = view[self.tls.send(view):]
            except ssl.SSLWantReadError:
                self.pump(0.05)
            except ssl.SSLWantWriteError:
                # What the other side sends is read meanwhile, or both would wait for ever.
                self.pump(0)
                select.select([], [self.tls], [], 0.05)
            except OSError:
                self.drain()
                raise Over("write")

    def pump(self, wait):
        """Reads what there is; True if anything came."""
        if not self.tls.pending():
            select.select([self.tls], [], [], wait)
        try:
            data = self.tls.recv(65536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            data = b""
        if not data:
            self.said["closed"] = True
            raise Over("end")
        self.input += data
        while len(self.input) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self.input[:9]))
            if len(self.input) < 9 + length:
                break
            frame.parse_body(memoryview(self.input[9:9 + length]))
            self.input = self.input[9 + length:]
            self.take(frame)
        return True

    def drain(self):
        """Reads what is still to be had of a connection that takes nothing more."""
        try:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                self.pump(0.1)
        except Over:
            pass
        self.said["closed"] = True

    def take(self, frame):
        stream = self.stream(frame.stream_id) if frame.stream_id else None
        if isinstance(frame, (HeadersFrame, ContinuationFrame)):
            self.block += frame.data
            self.block_flags |= set(frame.flags)
            if "END_HEADERS" in frame.flags:
                fields = self.decoder.decode(self.block, raw=True)
                fields = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in fields]
                status = dict(fields).get(":status")
                if status is None or not status.startswith("1"):
                    stream["status"] = int(status) if status else stream["status"]
                    stream["fields"] += fields
                stream["ended"] |= "END_STREAM" in self.block_flags
                self.block, self.block_flags = b"", set()
        elif isinstance(frame, DataFrame):
            stream["body"] += frame.data.decode("latin-1")
            stream["ended"] |= "END_STREAM" in frame.flags
            if self.windows and frame.flow_controlled_length:
                for number in (0, frame.stream_id):
                    update = WindowUpdateFrame(number)
                    update.window_increment = frame.flow_controlled_length
                    self.write(update.serialize())
        elif isinstance(frame, RstStreamFrame):
            stream["reset"] = frame.error_code
        elif isinstance(frame, GoAwayFrame):
            self.said["goaway"] = frame.error_code
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.said["settings"].update({str(k): v for k, v in frame.settings.items()})
            self.write(SettingsFrame(0, flags=["ACK"]).serialize())
        elif isinstance(frame, PingFrame) and "ACK" in frame.flags:
            self.said["pongs"] += 1
        elif isinstance(frame, PingFrame):
            answer = PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"])
            self.write(answer.serialize())

    def until(self, met):
        end = time.monotonic() + PATIENCE
        while not met():
            if time.monotonic() > end:
                self.said["late"] = True
                return
            self.pump(0.1)

    # Steps.

    def step_headers(self, number, fields, end=True, cut=None, more=True, huffman=False):
        pairs = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields]
        block = self.encoder.encode(pairs, huffman=huffman)
        self.blocks(number, block, end, cut or 16000, more)

    def step_block(self, number, text, end=True):
        """A header block, byte by byte."""
        self.blocks(number, bytes.fromhex(text), end, 16000, True)

    def blocks(self, number, block, end, size, more):
        pieces = [block[at:at + size] for at in range(0, len(block), size)] or [b""]
        out = b""
        for index, piece in enumerate(pieces):
            frame = ContinuationFrame(number) if index else HeadersFrame(number)
            frame.data = piece
            if end and not index:
                frame.flags.add("END_STREAM")
            if more and index == len(pieces) - 1:
                frame.flags.add("END_HEADERS")
            out += frame.serialize()
        self.write(out)

    def step_data(self, number, text, end=True, pad=None):
        frame = DataFrame(number, text.encode("latin-1"))
        if end:
            frame.flags.add("END_STREAM")
        if pad is not None:
            frame.flags.add("PADDED")
            frame.pad_length = pad
        self.write(frame.serialize())

    def step_reset(self, number, code=8):
        self.write(RstStreamFrame(number, code).serialize())

    def step_window(self, number, increment):
        payload = increment.to_bytes(4, "big")
        self.step_raw(8, 0, number, payload.hex())

    def step_depend(self, number):
        """A priority by which a stream depends on itself (RFC 7540 section 5.3.1)."""
        self.step_raw(2, 0, number, (number.to_bytes(4, "big") + b"\x10").hex())

    def step_raw(self, kind, flags, number, payload, count=1):
        body = bytes.fromhex(payload)
        head = len(body).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big")
        for _ in range(count):
            self.write(head + body)

    def step_bytes(self, text):
        self.write(text.encode("latin-1"))

    def step_goaway(self, last=0, code=0):
        self.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def step_ping(self):
        self.write(PingFrame(0, opaque_data=b"01234567").serialize())
        pongs = self.said["pongs"]
        self.until(lambda: self.said["pongs"] > pongs)

    def step_shut(self):
        """From here on no window is opened again."""
        self.windows = False

    def step_flood(self, count, first, steps):
        """Repeats steps on so many streams; "$" is the stream."""
        for index in range(count):
            for step in steps:
                self.step([first + 2 * index if part == "$" else part for part in step])
            if index % 64 == 63:
                self.pump(0)

    def step_done(self, number):
        stream = self.stream(number)
        self.until(lambda: stream["ended"] or stream["reset"] is not None)

    def step_begun(self, number):
        stream = self.stream(number)
        self.until(lambda: stream["status"] is not None or stream["reset"] is not None)

    def step_end(self):
        """Waits for the end of the connection."""
        self.until(lambda: False)

    def step_pause(self, name):
        """Says that it is here, and goes on when it is told to."""
        print(json.dumps({"paused": name}), flush=True)
        sys.stdin.readline()

    def step(self, step):
        getattr(self, "step_" + step[0])(*step[1:])


def play(proxy, authorization, ca, case):
    connection = None
    try:
        connection = Connection(proxy, authorization, ca, case["target"])
        if case.get("preface", True):
            first = SettingsFrame(0, settings={int(k): v for k, v in case.get("settings", {}).items()})
            connection.write(PREFACE + first.serialize())
            connection.until(lambda: connection.said["settings"])
        for step in case["steps"]:
            connection.step(step)
    except Over as over:
        if connection is None:
            return {"refused": str(over)}
    except OSError as error:
        return {"refused": str(error)}
    finally:
        if connection is not None:
            connection.tls.close()
    return connection.said


def main():
    host, port, ca = sys.argv[1:4]
    authorization = sys.stdin.readline().rstrip("\n") + "\r\n"
    for line in sys.stdin:
        answer = play((host, int(port)), authorization, ca, json.loads(line))
        print(json.dumps(answer), flush=True)


main()
