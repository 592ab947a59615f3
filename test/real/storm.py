# Threads that compute under a timer of 1 ms whose handler is Python's: every result is looked at. Runs until its handlers have
# been called often and the file "stop" is there; says what came of it in the file "result".
import hashlib, json, os, signal, sys, threading

folder = sys.argv[1]
caught = [0, 0]
wrong = []


def on_alarm(number, frame):
    caught[0] += 1
    os.kill(os.getpid(), signal.SIGUSR1)


def on_user(number, frame):
    caught[1] += 1


def stop():
    return os.path.exists(os.path.join(folder, "stop"))


signal.signal(signal.SIGUSR1, on_user)
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
over = threading.Event()
rounds = [0] * 4


def work(k):
    expected = hashlib.sha256(bytes([k]) * 1000).hexdigest()
    while not over.is_set():
        value = json.loads(json.dumps({"a": [k, {"b": None}], "c": "x" * k}))
        if value != {"a": [k, {"b": None}], "c": "x" * k}:
            wrong.append(k)
        if hashlib.sha256(bytes([k]) * 1000).hexdigest() != expected:
            wrong.append(k)
        try:
            raise ValueError(k)
        except ValueError as error:
            if error.args != (k,):
                wrong.append(k)
        rounds[k] += 1


threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
for thread in threads:
    thread.start()
with open(os.path.join(folder, "ready"), "w"):
    pass
while not stop() or min(caught) < 20 or min(rounds) < 20:
    over.wait(0.01)
over.set()
for thread in threads:
    thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
with open(os.path.join(folder, "result"), "w") as result:
    json.dump({"wrong": wrong, "handlers": [f.__name__ for f in map(signal.getsignal, (14, 10))]}, result)
sys.exit(9)
