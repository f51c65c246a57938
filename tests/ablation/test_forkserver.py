import socket
from multiprocessing import Pipe

import psutil
from started import of_test

from ablation.execution.forkserver import ForkServer


def test_a_job_leaves_no_process_where_who_asked_for_it_is_gone_before_it_began() -> None:
    with ForkServer({}) as server:
        own, its = Pipe()
        with its:
            socket.send_fds(server._control, [b"0"], [its.fileno()])
        own.send((dict, ()))
        own.close()
        assert server.start(dict).ended(60)  # so the first has been forked
        _, alive = psutil.wait_procs(of_test("gamlib-job") + of_test("gamlib-kernel"), 10)
        assert not alive
