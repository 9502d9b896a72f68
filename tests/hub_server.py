# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A server on this machine in the place of the hub: right, silent, slow, and refusing."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

from mmaselect.diffusion import hub as hub_module

COMMIT = 'a' * 40


class Server:
    """A hub with one repository ``some/model`` per folder.

    Attributes:
        folders: Repository to its folder.
        answer: What to do with a request: ``'right'``, ``'silent'``, ``'slow'``, or a status.
        requests: What was asked for.
    """

    def __init__(self):
        outer = self
        self.folders, self.requests, self.answer = {}, [], 'right'
        self.released = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.respond(False)

            def do_GET(self):
                self.respond(True)

            def send(self, status, content=b'', **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace('_', '-'), value)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                if self.command == 'GET':
                    self.wfile.write(content)

            def respond(self, body):
                outer.requests.append(f'{self.command} {self.path}')
                if outer.answer == 'silent':
                    outer.released.wait(60)
                    return
                if outer.answer == 'slow':
                    time.sleep(0.3)
                elif outer.answer == 'gated':
                    return self.send(403, X_Error_Code='GatedRepo')
                elif outer.answer != 'right':
                    return self.send(outer.answer)
                path = self.path.partition('?')[0]
                is_api = path.startswith('/api/models/')
                repo = '/'.join(path.removeprefix('/api/models').split('/')[1:3])
                folder = outer.folders.get(repo)
                if folder is None:
                    return self.send(404, X_Error_Code='RepoNotFound')
                files = {
                    str(file.relative_to(folder)): file
                    for file in sorted(folder.rglob('*'))
                    if file.is_file()
                }
                if is_api and '/tree/' in path:
                    listed = [
                        dict(type='file', path=name, size=file.stat().st_size, oid='b' * 40)
                        for name, file in files.items()
                    ]
                    return self.send(200, json.dumps(listed).encode())
                if is_api:
                    if '/revision/' in path and path.split('/revision/')[1] not in ('main', COMMIT):
                        return self.send(404, X_Error_Code='RevisionNotFound')
                    listed = [
                        dict(rfilename=name, size=file.stat().st_size)
                        for name, file in files.items()
                    ]
                    content = dict(id=repo, modelId=repo, sha=COMMIT, siblings=listed)
                    return self.send(200, json.dumps(content).encode())
                name = path.split('/resolve/')[1].partition('/')[2]
                if name not in files:
                    return self.send(404, X_Error_Code='EntryNotFound', X_Repo_Commit=COMMIT)
                content = files[name].read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                return self.send(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def serve(monkeypatch, cache):
    """The hub of this process from now on, with an empty cache; to be closed."""
    running = Server()
    monkeypatch.setattr(constants, 'ENDPOINT', running.url)
    monkeypatch.setattr(
        constants,
        'HUGGINGFACE_CO_URL_TEMPLATE',
        running.url + '/{repo_id}/resolve/{revision}/{filename}',
    )
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(hub_module, 'TIMEOUT', 1)
    hub_module._listing.cache_clear()
    return running
