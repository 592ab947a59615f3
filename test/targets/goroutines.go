// Goroutines whose stacks grow and are moved, and that go from thread to thread: each checks what it computes. A line of standard
// input is answered by "fine" or "wrong".
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
)

var wrong, rounds int64

//go:noinline
func fib(n int) int {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}

// deep needs far more stack than a goroutine has at first.
//
//go:noinline
func deep(n int) int {
	var room [128]int
	room[n%128] = n
	if n == 0 {
		return 0
	}
	return deep(n-1) + room[n%128] - n + 1
}

func work() {
	for {
		done := make(chan int)
		go func() { done <- deep(1000) }()
		if fib(15) != 610 || <-done != 1000 {
			atomic.AddInt64(&wrong, 1)
		}
		atomic.AddInt64(&rounds, 1)
		runtime.Gosched()
	}
}

func main() {
	for i := 0; i < 8; i++ {
		go work()
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		for from := atomic.LoadInt64(&rounds); atomic.LoadInt64(&rounds) < from+10; {
			runtime.Gosched()
		}
		if atomic.LoadInt64(&wrong) == 0 {
			fmt.Println("fine")
		} else {
			fmt.Println("wrong")
		}
	}
}
