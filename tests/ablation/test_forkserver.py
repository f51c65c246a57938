import socket
from multiprocessing import Pipe

import psutil
import pytest
from started import server


@pytest.mark.slow
def test_a_job_leaves_no_process_where_who_asked_for_it_is_gone_before_it_began() -> None:
    forking = psutil.Process(server()._process.pid)
    before = forking.children(recursive=True)
    own, its = Pipe()
    with its:
        socket.send_fds(server()._control, [b"0"], [its.fileno()])
    own.send((dict, ()))
    own.close()
    assert server().start(dict).ended(60)  # so the first has been forked
    _, alive = psutil.wait_procs({*forking.children(recursive=True)} - {*before}, 10)
    assert not alive
