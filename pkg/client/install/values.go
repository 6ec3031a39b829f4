package install

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"

	"github.com/detour-dev/detour/manifests"
)

// loadChart returns the chart that is built into the binary.
func loadChart() (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(manifests.Chart, "chart", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := manifests.Chart.ReadFile(p)
		if err != nil {
			return err
		}
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(p, "chart/"), Data: raw})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the built-in chart: %w", err)
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("load the built-in chart: %w", err)
	}
	return c, nil
}

// chartFlags are the flags that set values of the chart.
type chartFlags struct {
	image      string
	pullPolicy string
	set        []string
	changed    func(flag string) bool
}

// values returns the values that the flags set. It checks them against the chart's schema here:
// Helm checks them too, but only in the cluster.
func (f *chartFlags) values(c *chart.Chart) (map[string]any, error) {
	values := map[string]any{}
	if f.changed("image") {
		values["image"] = f.image
	}
	if f.changed("image-pull-policy") {
		values["imagePullPolicy"] = f.pullPolicy
	}
	for _, s := range f.set {
		if parsed, err := strvals.Parse(s); err != nil {
			return nil, fmt.Errorf("--set %s: %w: write it as key=value", s, err)
		} else if len(parsed) == 0 {
			return nil, fmt.Errorf("--set %q names no value: write it as key=value", s)
		}
		if err := strvals.ParseInto(s, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w: write it as key=value", s, err)
		}
	}
	all, err := util.CoalesceValues(c, values)
	if err != nil {
		return nil, fmt.Errorf("merge the values with the chart's: %w", err)
	}
	if err := util.ValidateAgainstSingleSchema(all, c.Schema); err != nil {
		return nil, fmt.Errorf("the chart does not accept these values (%s): docs/reference/chart-values.md lists "+
			"all values",
			schemaProblems(err))
	}
	return values, nil
}

// schemaProblems says in one line which values break the schema. It names them as --set does.
func schemaProblems(err error) string {
	var all []string
	for line := range strings.Lines(strings.TrimSpace(err.Error())) {
		pointer, why, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "- at "), ": ")
		if value := strings.ReplaceAll(strings.Trim(pointer, "'/"), "/", "."); value != "" {
			why = value + ": " + why
		}
		all = append(all, why)
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// disablePortForward sets connect.portForward to false unless values set it, and reports whether it
// did. The right to port-forward is one to all pods of the namespace, so laptops get it by default
// only if the namespace is detour's own.
func disablePortForward(values map[string]any) bool {
	connect, ok := values["connect"].(map[string]any)
	if !ok {
		connect = map[string]any{}
		values["connect"] = connect
	}
	if _, set := connect["portForward"]; set {
		return false
	}
	connect["portForward"] = false
	return true
}
