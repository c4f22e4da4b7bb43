"""Kills a job at random moments until it ends by itself; for scripts that a test runs in a process of their own."""

import os
import random
import signal
import sys
import time


def killed(job, kills, pause):
    """Run `job` in child processes, kill the first `kills` of them after `pause` (least, most) seconds, and print how
    many were killed, once one has ended by itself. Ends too where a child fails, or nobody waits any more."""
    parent, done = os.getppid(), 0
    while True:
        child = os.fork()
        if not child:
            job()
            os._exit(0)
        time.sleep(random.uniform(*pause))
        if done < kills:
            os.kill(child, signal.SIGKILL)
            done += 1
        status = os.waitpid(child, 0)[1]
        if status == 0:
            print(done)
            return
        if os.WIFEXITED(status) or os.getppid() != parent:
            sys.exit("it failed by itself, or nobody waits any more")
