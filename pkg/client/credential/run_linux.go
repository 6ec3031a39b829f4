package credential

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// run first gives up every right of root, and only then uses what the user has named.
func (p plugin) run(info string) error {
	runtime.LockOSThread()
	if err := p.Account.become(); err != nil {
		return fmt.Errorf("become user %d: %w", p.Account.UID, err)
	}
	os.Clearenv()
	environment := slices.Clone(p.Environment)
	for _, v := range environment {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil {
				return fmt.Errorf("set the path: %w", err)
			}
		}
	}
	if info != "" {
		environment = append(environment, execInfo+"="+info)
	}
	path, err := exec.LookPath(p.Command)
	if err != nil {
		return fmt.Errorf("find the credential plugin: %w", err)
	}
	return fmt.Errorf("start %s: %w", path, syscall.Exec(path, append([]string{p.Command}, p.Args...), environment))
}

// become changes the process to an account, irreversibly: it also changes the saved IDs, the
// capabilities go with them, and no program that the process starts can regain any.
func (a Account) become() error {
	if a.UID == 0 {
		return errors.New("the account is root")
	}
	_, _ = unix.Setsid() // leave a terminal of root
	for _, step := range []func() error{
		func() error { return syscall.Setgroups(a.Groups) },
		func() error { return syscall.Setresgid(a.GID, a.GID, a.GID) },
		func() error { return syscall.Setresuid(a.UID, a.UID, a.UID) },
		func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if os.Geteuid() != a.UID || os.Getegid() != a.GID {
		return errors.New("the kernel has not changed the IDs")
	}
	return nil
}
