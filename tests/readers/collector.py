"""An OpenTelemetry collector made of the project's own messages and of Google's own gRPC: it takes
profiles over gRPC and HTTP, checks what the protocol asks of them, and prints what it understood.

Its first line is the two ports, each further one a request. Over either way it is not ready for the first
request, and says so. It ends when its standard input does.
"""

import gzip
import json
import ssl
import sys
import threading
from pathlib import Path
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.profiles.v1development import (
    profiles_service_pb2 as service,
    profiles_service_pb2_grpc as grpc_service,
)

lock = threading.Lock()


def say(what):
    with lock:
        print(json.dumps(what), flush=True)


def plain(value):
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


class Dictionary:
    """The tables; remembers what was referred to, so that nothing is there for nobody."""

    def __init__(self, tables):
        self.problems = []
        self.tables = {field.name: list(getattr(tables, field.name)) for field in tables.DESCRIPTOR.fields}
        self.used = {name: {0} for name in self.tables}
        for name, table in self.tables.items():
            if not table:
                self.problems.append(f"{name} has no first entry")
            elif table[0] != type(table[0])():
                self.problems.append(f"the first entry of {name} says something")
            seen = [entry if isinstance(entry, str) else entry.SerializeToString() for entry in table]
            if len(set(seen)) < len(seen):
                self.problems.append(f"{name} has an entry twice")

    def get(self, name, index):
        table = self.tables[name]
        if not 0 <= index < len(table):
            self.problems.append(f"{name} has no entry {index}")
            return table[0]
        self.used[name].add(index)
        return table[index]

    def string(self, index):
        return self.get("string_table", index)

    def kind(self, kind):
        return f"{self.string(kind.type_strindex)}/{self.string(kind.unit_strindex)}"

    def attributes(self, indices):
        pairs = [self.get("attribute_table", index) for index in indices]
        named = {self.string(pair.key_strindex): plain(pair.value) for pair in pairs}
        if len(named) < len(pairs):
            self.problems.append("an attribute is there twice")
        return named

    def frame(self, index):
        location = self.get("location_table", index)
        mapping = self.get("mapping_table", location.mapping_index)
        module = self.string(mapping.filename_strindex)
        build = self.attributes(mapping.attribute_indices)
        frame = {"type": None, "module": module, **build, "lines": []}
        frame["type"] = self.attributes(location.attribute_indices).get("profile.frame.type")
        for line in location.lines:
            function = self.get("function_table", line.function_index)
            name, file = self.string(function.name_strindex), self.string(function.filename_strindex)
            self.string(function.system_name_strindex)
            frame["lines"].append([name, file, function.start_line, line.line])
        return frame

    def stack(self, index):
        if index == 0:
            self.problems.append("a sample has no stack")
        return [self.frame(index) for index in self.get("stack_table", index).location_indices]

    def check_all_used(self):
        for name, table in self.tables.items():
            orphans = set(range(len(table))) - self.used[name]
            if orphans:
                self.problems.append(f"nobody refers to {orphans} of {name}")


def understood(way, headers, request):
    dictionary = Dictionary(request.dictionary)
    [resource] = request.resource_profiles
    [scope] = resource.scope_profiles
    [profile] = scope.profiles
    if len(profile.profile_id) != 16 or not any(profile.profile_id):
        dictionary.problems.append("the profile has no id")
    attributes = [(pair.key, plain(pair.value)) for pair in resource.resource.attributes]
    if len(dict(attributes)) < len(attributes):
        dictionary.problems.append("an attribute of the resource is there twice")
    samples = []
    identities = set()
    for sample in profile.samples:
        identities.add((sample.stack_index, tuple(sample.attribute_indices), sample.link_index))
        samples.append({
            "stack": dictionary.stack(sample.stack_index),
            "values": list(sample.values),
            "attributes": dictionary.attributes(sample.attribute_indices),
        })
    if len(identities) < len(profile.samples):
        dictionary.problems.append("two samples are of the same identity")
    what = {
        "way": way,
        "headers": {name.lower(): value for name, value in headers},
        "resource": dict(attributes),
        "scope": scope.scope.name,
        "type": dictionary.kind(profile.sample_type),
        "period_type": dictionary.kind(profile.period_type),
        "period": profile.period,
        "began": profile.time_unix_nano,
        "lasted": profile.duration_nano,
        "id": profile.profile_id.hex(),
        "of": dictionary.attributes(profile.attribute_indices),
        "samples": samples,
    }
    dictionary.check_all_used()
    what["problems"] = dictionary.problems
    say(what)


class Profiles(grpc_service.ProfilesServiceServicer):
    ready = False

    def Export(self, request, context):
        if not self.ready:
            self.ready = True
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        understood("grpc", context.invocation_metadata(), request)
        return service.ExportProfilesServiceResponse()


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ready = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = 503, b"not yet"
        if self.path != "/v1development/profiles":
            status = 404
        elif Http.ready:
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            request = service.ExportProfilesServiceRequest.FromString(body)
            understood("http", self.headers.items(), request)
            status, answer = 200, service.ExportProfilesServiceResponse().SerializeToString()
        Http.ready = True
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
grpc_service.add_ProfilesServiceServicer_to_server(Profiles(), server)
http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
if len(sys.argv) > 1:
    # With TLS, for those alone who show a certificate of the same authority.
    authority, certificate, key = (Path(sys.argv[1]) / name for name in ("ca.pem", "it.pem", "it.key"))
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.read_bytes(), True
    )
    grpc_port = server.add_secure_port("127.0.0.1:0", credentials)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    http.socket = context.wrap_socket(http.socket, server_side=True)
else:
    grpc_port = server.add_insecure_port("127.0.0.1:0")
server.start()
threading.Thread(target=http.serve_forever, daemon=True).start()
say({"grpc": grpc_port, "http": http.server_port})
sys.stdin.read()
server.stop(None)
