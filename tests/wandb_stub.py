"""W&B's server on 127.0.0.1: as much of its GraphQL as runs, reports and views need. It keeps what it was told."""

import base64
import gzip
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

KEY = "0" * 40
PERSON = {"id": "VXNlcjox", "entity": "team", "username": "someone", "email": "", "flags": "{}", "name": "",
          "admin": False, "deletedAt": None, "apiKeys": {"edges": []},
          "teams": {"edges": [{"node": {"name": "team"}}]}}  # fmt: skip


class Server(ThreadingHTTPServer):
    """calls: (operation, variables) in order. views: {id: view}. runs: {id: what was upserted of it}. files: {name of a
    run's file: bytes}. unknown: operations that it has no answer to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.projects, self.views, self.runs, self.files, self.unknown = [], [], {}, {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, *operations):
        return [variables for name, variables in self.calls if name in operations]

    def answer(self, operation, told):
        answers = {
            "Viewer": self.viewer, "ServerFeaturesQuery": lambda told: {"serverInfo": {"features": []}},
            "GetProjects": self.listed, "CreateProject": self.create, "ProjectInternalId": self.project,
            "upsertView": self.upsert, "UpsertView2": self.upsert, "SpecificReport": self.report, "View": self.view,
            "deleteView": self.delete, "UpsertBucket": self.bucket, "RunResumeStatus": lambda told: {"model": None},
            "CreateArtifact": self.artifact, "ArtifactType": lambda told: {"project": None},
            "CreateRunFiles": self.upload,
        }  # fmt: skip
        if operation not in answers:
            self.unknown.append(operation)
            return {}
        return answers[operation](told)

    def viewer(self, told):
        return {"viewer": PERSON}

    def listed(self, told):
        facts = {"id": "UHJvamVjdDox", "entityName": told["entity"], "createdAt": "2026-01-01T00:00:00"}
        more = {"isBenchmark": False, "user": PERSON}
        edges = [{"cursor": "", "node": {"name": name, **facts, **more}} for name in self.projects]
        return {"models": {"edges": edges, "pageInfo": {"hasNextPage": False, "endCursor": None}}}

    def create(self, told):
        self.projects.append(told["input"]["name"])
        return {"upsertModel": {"project": {"id": "UHJvamVjdDox", "name": self.projects[-1]}, "inserted": True}}

    def project(self, told):
        return {
            "project": {"id": "UHJvamVjdDox", "internalId": "MQ=="} if told["projectName"] in self.projects else None
        }

    def upsert(self, told):
        id = told.get("id") or base64.b64encode(f"View:{len(self.views) + 1:04d}".encode()).decode()
        inserted = id not in self.views
        project = {"id": "UHJvamVjdDox", "name": told["projectName"], "entityName": told["entityName"]}
        when = dict.fromkeys(("createdAt", "updatedAt"), "2026-01-01T00:00:00")
        kept = {key: told[key] for key in ("type", "name", "displayName", "spec")}
        self.views[id] = {"id": id, **kept, "description": "", "project": project, **when}
        return {"upsertView": {"view": self.views[id], "inserted": inserted}}

    def report(self, told):
        return {"view": self.views.get(told["reportId"])}

    def view(self, told):
        nodes = [{"node": view} for view in self.views.values() if view["name"] == told["viewName"]]
        return {"project": {"allViews": {"edges": nodes}}}

    def delete(self, told):
        self.views.pop(told["id"])
        return {"deleteView": {"success": True, "pendingDrafts": None, "__typename": "DeleteViewPayload"}}

    def bucket(self, told):
        self.runs.setdefault(told["name"], {}).update({key: value for key, value in told.items() if value is not None})
        project = {"id": "UHJvamVjdDox", "name": told["project"], "entity": {"id": "RW50aXR5OjE=", "name": "team"}}
        if told["project"] not in self.projects:
            self.projects.append(told["project"])
        bucket = {"id": base64.b64encode(told["name"].encode()).decode(), "name": told["name"], "displayName": "",
                  "description": "", "config": "{}", "sweepName": None, "project": project,
                  "historyLineCount": 0}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def artifact(self, told):
        latest = {"latestArtifact": {"id": "QXJ0aWZhY3Q6MQ=="}}
        return {
            "createArtifact": {"artifact": {"id": "QXJ0aWZhY3Q6MQ==", "state": "COMMITTED", "artifactSequence": latest}}
        }

    def upload(self, told):
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{told['run']}/{quote(name)}"} for name in told["files"]
        ]
        return {"createRunFiles": {"runID": "UnVuOjE=", "uploadHeaders": [], "files": files}}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation, told = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1], asked.get("variables") or {}
            self.server.calls.append((operation, told))
            answer = {"data": self.server.answer(operation, told)}
        elif self.path.startswith("/upload/"):
            self.server.files[self.path.removeprefix("/upload/")] = body
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
