// A Go program with C in it: goroutines call C, which calls Go.
package main

/*
#include <stdlib.h>
#include <string.h>
extern int back(int);
static int through(int n) {
  char *text = strdup("text");
  int length = (int)strlen(text);
  free(text);
  return back(n) + length;
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"sync/atomic"
)

var wrong, rounds int64

//export back
func back(n C.int) C.int { return C.int(deep(int(n))) }

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
		go func() { done <- int(C.through(500)) }()
		if <-done != 504 {
			atomic.AddInt64(&wrong, 1)
		}
		atomic.AddInt64(&rounds, 1)
	}
}

func main() {
	for i := 0; i < 8; i++ {
		go work()
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		for from := atomic.LoadInt64(&rounds); atomic.LoadInt64(&rounds) < from+1000; {
		}
		if atomic.LoadInt64(&wrong) == 0 {
			fmt.Println("fine")
		} else {
			fmt.Println("wrong")
		}
	}
}
