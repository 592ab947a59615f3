# Threads, exceptions, signal handlers, children and a fork; prints what must be the same each time.
import hashlib, json, os, re, signal, subprocess, sys, threading, zlib

caught = 0


def on_signal(number, frame):
    global caught
    caught += 1


signal.signal(signal.SIGUSR1, on_signal)
results = {}


def work(k):
    failures = 0
    for i in range(150):
        try:
            if i % 3 == 0:
                raise ValueError(i)
            json.dumps({"a": [i, str(i)], "b": {"c": None}})
        except ValueError as error:
            failures += error.args[0] % 7
    results[k] = failures


threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
for thread in threads:
    thread.start()
for _ in range(25):
    os.kill(os.getpid(), signal.SIGUSR1)
for thread in threads:
    thread.join()
print(sorted(results.items()), caught > 0)


def dive(n):
    return dive(n + 1)


try:
    dive(0)
except RecursionError as error:
    print(error)
print(hashlib.sha256(b"x" * 1000).hexdigest(), zlib.crc32(zlib.compress(b"abc" * 1000)))
print(re.sub(r"(\d+)", lambda m: str(int(m[1]) * 2), "a1 b22 c333"))
print(subprocess.run(["/bin/sh", "-c", "echo from a child; exit 3"], capture_output=True))
sys.stdout.flush()
child = os.fork()
if child == 0:
    print("forked", flush=True)
    os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.setitimer(signal.ITIMER_REAL, 0.02)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
sys.exit(9)
