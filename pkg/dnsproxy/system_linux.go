package dnsproxy

import (
	"context"
	"log/slog"
)

// PutBack undoes what a process before this one has set.
func PutBack(file ResolvConf) error { return file.Restore() }

// FindSystem finds out who resolves names here: systemd-resolved if the file leads to it, else the file itself.
func FindSystem(ctx context.Context, file ResolvConf, log *slog.Logger) System {
	if !file.leadsToResolved() {
		return Plain(file)
	}
	r, err := findResolved(ctx)
	if err != nil {
		log.Warn("systemd-resolved is not told of the cluster's names, "+file.Path+" is", "err", err)
		return Plain(file)
	}
	return r
}
