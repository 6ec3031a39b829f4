package vif

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// letProgramGo gives the pages of the program's own file back, as the runtime does with those of the heap. Most were needed once, to start: each
// Kubernetes API registers its types. The kernel has them in its cache and maps those again that are still used, 64 KiB at a time.
func letProgramGo() {
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return // they stay
	}
	defer maps.Close()
	for _, m := range fileMappings(maps) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED) // they stay if it fails
	}
}

type mapping struct{ start, end uintptr }

// fileMappings are the mappings of files that nobody has written to, nor can, in the form of proc_pid_smaps(5). Those that were written to,
// by a loader that relocates, say so by anonymous pages, which would be lost.
func fileMappings(smaps io.Reader) []mapping {
	var found []mapping
	var last mapping
	ofFile := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) > 4 && strings.Contains(fields[0], "-"): // start-end permissions offset device inode [path]
			_, err := fmt.Sscanf(fields[0], "%x-%x", &last.start, &last.end)
			ofFile = err == nil && fields[4] != "0" && !strings.Contains(fields[1], "w")
		case ofFile && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0":
			found = append(found, last)
		}
	}
	return found
}
