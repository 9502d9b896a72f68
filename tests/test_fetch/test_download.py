# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Downloads from a server on this machine that drops connections, lies, and moves files."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmaselect.fetch import Archive
from mmaselect.fetch import download as download_module
from mmaselect.fetch.download import download

CONTENT = bytes(range(256)) * 4000
CHECKSUM = f'sha256:{hashlib.sha256(CONTENT).hexdigest()}'


class Server(ThreadingHTTPServer):
    """What it serves, how it misbehaves, and what it was asked for."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.etag, self.kind = CONTENT, '"one"', 'application/gzip'
        self.drops = []  # bytes after which connections end, one by one
        self.ranges = []  # what was asked for
        self.statuses = []  # answers in place of the file, one by one
        self.honors_ranges = True

    def archive(self, **changes):
        url = f'http://127.0.0.1:{self.server_port}/file.tgz'
        return Archive(
            **{**dict(name='file.tgz', url=url, size=len(CONTENT), checksum=CHECKSUM), **changes}
        )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get('Range')
        server.ranges.append(asked)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        fits = self.headers.get('If-Range') == server.etag and server.honors_ranges
        start = int(asked.removeprefix('bytes=').rstrip('-')) if asked and fits else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Content-Type', server.kind)
        if server.etag:
            self.send_header('ETag', server.etag)
        self.end_headers()
        self.wfile.write(body[: server.drops.pop(0)] if server.drops else body)

    def log_message(self, *args):
        """No lines on stderr."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(server, tmp_path):
    path = download(server.archive(), tmp_path, progress=False)
    assert path.read_bytes() == CONTENT and names(tmp_path) == ['file.tgz']
    assert server.ranges == [None]


def test_file_addresses(tmp_path):
    (tmp_path / 'source').write_bytes(CONTENT)
    archive = Archive('a.tar', (tmp_path / 'source').as_uri(), len(CONTENT), CHECKSUM)
    assert download(archive, tmp_path / 'to', progress=False).read_bytes() == CONTENT
    gone = Archive('a.tar', (tmp_path / 'gone').as_uri())
    with pytest.raises(ConnectionError, match='No such file'):
        download(gone, tmp_path / 'to', progress=False)


def test_a_lost_connection_resumes_within_one_call(server, tmp_path):
    server.drops = [300_000, 200_000]
    assert download(server.archive(), tmp_path, progress=False).read_bytes() == CONTENT
    assert server.ranges == [None, 'bytes=300000-', 'bytes=500000-']


def test_and_in_a_later_call(server, tmp_path):
    server.drops = [100_000] * download_module.ATTEMPTS
    with pytest.raises(ConnectionError, match='300000 bytes are kept: the same command resumes'):
        download(server.archive(), tmp_path, progress=False)
    assert names(tmp_path) == ['file.tgz.part', 'file.tgz.part.tag']
    assert download(server.archive(), tmp_path, progress=False).read_bytes() == CONTENT
    assert server.ranges[-1] == 'bytes=300000-' and names(tmp_path) == ['file.tgz']


@pytest.mark.parametrize('how', ['another version', 'no ranges', 'no tag'])
def test_what_cannot_be_resumed_begins_anew(server, tmp_path, how):
    if how == 'no tag':
        server.etag = None
    server.drops = [100_000] * download_module.ATTEMPTS
    with pytest.raises(ConnectionError):
        download(server.archive(), tmp_path, progress=False)
    if how == 'another version':
        server.etag, server.content = '"two"', CONTENT[::-1]
    if how == 'no ranges':
        server.honors_ranges = False
    checksum = f'sha256:{hashlib.sha256(server.content).hexdigest()}'
    path = download(server.archive(checksum=checksum), tmp_path, progress=False)
    assert path.read_bytes() == server.content


def test_other_bytes_are_removed(server, tmp_path):
    server.content = CONTENT[:-1] + b'?'
    with pytest.raises(ValueError, match=r'not the published file: its sha256 is .*was expected'):
        download(server.archive(), tmp_path, progress=False)
    assert names(tmp_path) == []
    server.content = CONTENT[:-5]
    with pytest.raises(ValueError, match='has 1023995 bytes, and the published file has 1024000'):
        download(server.archive(), tmp_path, progress=False)
    assert names(tmp_path) == []
    # Where no checksum is known, the size is only about right.
    path = download(server.archive(checksum=None, size=5), tmp_path, progress=False)
    assert path.read_bytes() == server.content


def test_a_web_page_is_no_archive(server, tmp_path):
    server.kind = 'text/html; charset=utf-8'
    with pytest.raises(ValueError, match=r'gives a web page and not file\.tgz'):
        download(server.archive(checksum=None), tmp_path, progress=False)
    assert 'file.tgz' not in names(tmp_path)


def test_answers_of_the_server(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(ConnectionError, match='the server answers 404 Not Found'):
        download(server.archive(), tmp_path, progress=False)
    assert len(server.ranges) == 1, 'what is gone is not asked for again'
    server.statuses = [503]
    assert download(server.archive(), tmp_path, progress=False).read_bytes() == CONTENT


def test_the_beginning_that_is_the_whole_file(server, tmp_path):
    (tmp_path / 'file.tgz.part').write_bytes(CONTENT)
    (tmp_path / 'file.tgz.part.tag').write_text('"one"')
    server.statuses = [416]
    assert download(server.archive(), tmp_path, progress=False).read_bytes() == CONTENT


def test_no_room_is_said_at_once(server, tmp_path, monkeypatch):
    usage = type('Usage', (), dict(free=1000))
    monkeypatch.setattr(download_module.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(OSError, match=r'needs 0\.0 GiB more, and .* has 0\.0 GiB left'):
        download(server.archive(), tmp_path, progress=False)


def test_a_progress_bar(server, tmp_path, capsys):
    download(server.archive(), tmp_path)
    assert 'file.tgz' in capsys.readouterr().err
