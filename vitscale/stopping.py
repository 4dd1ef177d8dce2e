"""Which signals ask a run to stop in good order."""

import signal

# TERM: preemption, kill.  USR1, USR2: the time limit is near, as sites and other programs have it.  INT: Ctrl-C.  HUP: the terminal was
# closed, ssh lost its connection.  XCPU: a limit of CPU time.  QUIT (Ctrl-\) is left as it is: the way to end a process at once.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)


def heard() -> tuple[signal.Signals, ...]:
    """STOPPING, without a HUP that this process was started to ignore: under `nohup` a closed terminal ends nothing."""
    return tuple(number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)
