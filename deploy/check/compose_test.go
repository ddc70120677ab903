package check

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// readCompose loads a file as docker compose does. The loader checks it against the schema of the Compose
// Specification.
func readCompose(t *testing.T, file string) *types.Project {
	t.Helper()
	data, err := os.ReadFile("../" + file)
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  "..",
		ConfigFiles: []types.ConfigFile{{Filename: file, Content: data}},
		Environment: types.Mapping{"DOMAIN": "counter.example.com"},
	}, func(o *loader.Options) { o.SetProjectName("plusminus", true) })
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestCompose(t *testing.T) {
	for _, file := range []string{"compose.yml", "compose-replicas.yml"} {
		project := readCompose(t, file)
		for name, s := range project.Services {
			if s.Restart != "unless-stopped" || s.Logging == nil || s.Logging.Options["max-size"] == "" {
				t.Errorf("%s: %s has no restart policy unless-stopped, or no limit of its log", file, name)
			}
			if s.Image != "plusminus" {
				continue
			}
			if domain := s.Environment["PLUSMINUS_DOMAIN"]; domain == nil || *domain != "counter.example.com" {
				t.Errorf("%s: PLUSMINUS_DOMAIN of %s is not DOMAIN", file, name)
			}
			if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
				t.Errorf("%s: %s is not read-only, has capabilities or may gain privileges", file, name)
			}
			if s.StopGracePeriod == nil || len(s.Volumes) != 1 || s.Volumes[0].Target != "/data" {
				t.Errorf("%s: %s has no stop_grace_period, or not exactly one volume, at /data", file, name)
			}
			for _, p := range s.Ports {
				if p.Target == 9180 {
					t.Errorf("%s: %s publishes its admin address", file, name)
				}
			}
		}
	}
}

// TestBalancer checks that the balancer's backends name all replicas, and that each replica trusts the balancer.
func TestBalancer(t *testing.T) {
	project := readCompose(t, "compose-replicas.yml")
	front := project.Networks["front"].Ipam.Config[0].Subnet
	var replicas []string
	for name, s := range project.Services {
		if s.Image != "plusminus" {
			continue
		}
		replicas = append(replicas, name)
		if trusted := s.Environment["PLUSMINUS_PROXY_PROTOCOL"]; trusted == nil || *trusted != front {
			t.Errorf("PLUSMINUS_PROXY_PROTOCOL of %s is not the balancer's network %s", name, front)
		}
		if len(s.Networks) != 2 {
			t.Errorf("%s is in %d networks, want 2", name, len(s.Networks))
		}
	}
	slices.Sort(replicas)
	if len(replicas) != 3 {
		t.Errorf("replicas = %q, want three", replicas)
	}
	haproxy, err := os.ReadFile("../haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	backends := strings.Split(string(haproxy), "\nbackend ")[1:]
	if len(backends) != 3 {
		t.Errorf("haproxy.cfg has %d backends, want 3", len(backends))
	}
	for _, b := range backends {
		var servers []string
		for _, m := range regexp.MustCompile(`(?m)^  server (\S+) (\S+):\d+$`).FindAllStringSubmatch(b, -1) {
			if m[1] != m[2] {
				t.Errorf("server %s has the address %s, want the same name", m[1], m[2])
			}
			servers = append(servers, m[2])
		}
		if !slices.Equal(servers, replicas) {
			t.Errorf("servers of a backend = %q, want %q", servers, replicas)
		}
	}
	if !regexp.MustCompile(`(?m)^  default-server .*\bsend-proxy-v2$`).Match(haproxy) {
		t.Error("default-server of haproxy.cfg has no send-proxy-v2, so replicas do not get the clients' addresses")
	}
}
