"""Runs programs that share their standard streams, of one KIND, and tells as JSON what became of the streams.

streams.py KIND GO COMMAND...              one program
streams.py KIND GO COMMAND... + COMMAND...  a second one, which gets the first one's process id for the word PID, and traces it

GO is a file, which is made when the program is to begin: at once, or when its recording (-o) has begun.
"""
import fcntl, json, os, pty, socket, subprocess, sys, tempfile, termios, threading, time, tty

kind, go, words = sys.argv[1], sys.argv[2], sys.argv[3:]
commands = [words[: words.index("+")], words[words.index("+") + 1 :]] if "+" in words else [words]
folder = tempfile.mkdtemp()


def make(index):
    """The end for the programs, and the one that is ours."""
    if kind == "pipe":
        reader, writer = os.pipe()
        return (reader, writer) if index == 0 else (writer, reader)
    if kind == "socket":
        a, b = socket.socketpair()
        return a.detach(), b.detach()
    if kind == "terminal":
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        settings = termios.tcgetattr(theirs)
        settings[3] |= termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        return theirs, ours
    if kind == "fifo":
        path = os.path.join(folder, str(index))
        os.mkfifo(path)
        both = os.open(path, os.O_RDWR)
        theirs = os.open(path, os.O_RDONLY if index == 0 else os.O_WRONLY)
        ours = os.open(path, os.O_WRONLY if index == 0 else os.O_RDONLY)
        os.close(both)
        return theirs, ours
    if kind == "null":
        return os.open("/dev/null", os.O_RDWR), None
    path = os.path.join(folder, str(index))
    open(path, "w").close()
    return os.open(path, os.O_RDONLY if index == 0 else os.O_WRONLY | os.O_APPEND), None


def state(fd):
    settings = termios.tcgetattr(fd)[:4] if os.isatty(fd) else None
    return {"flags": fcntl.fcntl(fd, fcntl.F_GETFL), "settings": settings}


pairs = [make(index) for index in range(3)]
theirs = [pair[0] for pair in pairs]
before = [state(fd) for fd in theirs]
received = [0, 0, 0]


def read(index):
    time.sleep(0.7)
    while True:
        try:
            data = os.read(pairs[index][1], 4096)
        except OSError:
            return
        if not data:
            return
        received[index] += data.count(b"x" * 1000 ) * 1000 if index == 2 else data.count(b"x")
        time.sleep(0.002)


readers = [threading.Thread(target=read, args=(i,), daemon=True) for i in (1, 2) if pairs[i][1] is not None]
for reader in readers:
    reader.start()
running = []
for command in commands:
    words = [str(running[0].pid) if word == "PID" else word for word in command]
    running.append(subprocess.Popen(words, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2]))
recording = commands[1][commands[1].index("-o") + 1] if len(running) > 1 else None
while recording is not None and not (os.path.exists(recording) and os.path.getsize(recording) > 0):
    if running[1].poll() is not None:
        sys.exit("it is not traced")
    time.sleep(0.01)
open(go, "w").close()
statuses = [program.wait() for program in running]
after = [state(fd) for fd in theirs]
if kind == "file":
    received[1] = open(os.path.join(folder, "1")).read().count("x")
for fd in theirs:
    os.close(fd)
for reader in readers:
    reader.join()
print(json.dumps({"statuses": statuses, "before": before, "after": after, "received": received[1]}))
