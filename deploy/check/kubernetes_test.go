package check

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// manifest holds the objects of one Kubernetes file.
type manifest struct {
	t         *testing.T
	file      string
	pods      map[string]corev1.PodTemplateSpec // by the name of the workload
	claims    map[string][]string               // by workload: names of its volumeClaimTemplates
	services  []*corev1.Service
	selectors map[string]*metav1.LabelSelector // of disruption budgets and network policies
	policies  []*networkingv1.NetworkPolicy
}

// readManifest decodes each object of a file into the type that Kubernetes publishes for it. An unknown field
// is an error.
func readManifest(t *testing.T, file string) *manifest {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest{t: t, file: filepath.Base(file), pods: map[string]corev1.PodTemplateSpec{}, claims: map[string][]string{}, selectors: map[string]*metav1.LabelSelector{}}
	for i, doc := range bytes.Split(data, []byte("\n---\n")) {
		obj, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("%s, object %d: %v", m.file, i+1, err)
			continue
		}
		m.add(obj)
	}
	return m
}

func (m *manifest) add(obj runtime.Object) {
	meta := obj.(metav1.Object)
	if _, ok := obj.(*corev1.Namespace); !ok && meta.GetNamespace() != "plusminus" {
		m.t.Errorf("%s: namespace of %s = %q, want plusminus", m.file, meta.GetName(), meta.GetNamespace())
	}
	workload := func(selector *metav1.LabelSelector, template corev1.PodTemplateSpec) {
		m.pods[meta.GetName()] = template
		if !m.matches(selector, template.Labels) {
			m.t.Errorf("%s: %s does not select its own pods", m.file, meta.GetName())
		}
	}
	switch o := obj.(type) {
	case *corev1.Namespace:
	case *corev1.Service:
		m.services = append(m.services, o)
	case *appsv1.Deployment:
		workload(o.Spec.Selector, o.Spec.Template)
	case *appsv1.StatefulSet:
		workload(o.Spec.Selector, o.Spec.Template)
		for _, c := range o.Spec.VolumeClaimTemplates {
			m.claims[o.Name] = append(m.claims[o.Name], c.Name)
		}
	case *policyv1.PodDisruptionBudget:
		m.selectors["budget "+o.Name] = o.Spec.Selector
	case *networkingv1.NetworkPolicy:
		m.selectors["policy "+o.Name] = &o.Spec.PodSelector
		m.policies = append(m.policies, o)
	default:
		m.t.Errorf("%s: this test does not support the type %T", m.file, o)
	}
}

func (m *manifest) matches(selector *metav1.LabelSelector, pod map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		m.t.Errorf("%s: %v", m.file, err)
		return false
	}
	return !s.Empty() && s.Matches(labels.Set(pod))
}

// selected returns the name of the only workload whose pods match the selector. what names its owner.
func (m *manifest) selected(what string, selector *metav1.LabelSelector) string {
	var names []string
	for name, pod := range m.pods {
		if m.matches(selector, pod.Labels) {
			names = append(names, name)
		}
	}
	if len(names) != 1 {
		m.t.Errorf("%s: %s selects the pods of %q, want one workload", m.file, what, names)
		return ""
	}
	return names[0]
}

// hasPort reports whether a container of the workload has port, which may be a name or a number.
func (m *manifest) hasPort(workload string, port intstr.IntOrString) bool {
	for _, c := range m.pods[workload].Spec.Containers {
		for _, p := range c.Ports {
			if port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
				return true
			}
		}
	}
	return false
}

func TestKubernetes(t *testing.T) {
	files, err := filepath.Glob("../kubernetes/*.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("%q, %v, want two files", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { readManifest(t, file).check() })
	}
}

// check checks what the types cannot: that each name refers to something that exists.
func (m *manifest) check() {
	for what, selector := range m.selectors {
		m.selected(what, selector)
	}
	for _, s := range m.services {
		target := m.selected("service "+s.Name, &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
		for _, p := range s.Spec.Ports {
			if !m.hasPort(target, p.TargetPort) {
				m.t.Errorf("%s: service %s has the target port %s, which %s does not have", m.file, s.Name, p.TargetPort.String(), target)
			}
		}
		if s.Name == "plusminus" && (s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal) {
			m.t.Errorf("%s: service %s does not keep the clients' addresses", m.file, s.Name)
		}
	}
	for _, p := range m.policies {
		for _, in := range p.Spec.Ingress {
			for _, port := range in.Ports {
				if !m.hasPort(p.Name, *port.Port) {
					m.t.Errorf("%s: policy %s allows port %s, which does not exist", m.file, p.Name, port.Port.String())
				}
			}
		}
	}
	for name, pod := range m.pods {
		m.checkPod(name, &pod.Spec)
	}
}

func (m *manifest) checkPod(name string, spec *corev1.PodSpec) {
	volumes := map[string]bool{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range m.claims[name] {
		volumes[c] = true
	}
	for _, c := range spec.Containers {
		for _, v := range c.VolumeMounts {
			if !volumes[v.Name] {
				m.t.Errorf("%s: %s mounts %s, which does not exist", m.file, name, v.Name)
			}
			delete(volumes, v.Name)
		}
		for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe} {
			if probe == nil {
				continue
			}
			var port intstr.IntOrString
			switch {
			case probe.HTTPGet != nil:
				port = probe.HTTPGet.Port
			case probe.TCPSocket != nil:
				port = probe.TCPSocket.Port
			}
			if !m.hasPort(name, port) {
				m.t.Errorf("%s: a probe of %s uses port %s, which does not exist", m.file, name, port.String())
			}
		}
		for _, problem := range restricted(spec, &c) {
			m.t.Errorf("%s: %s: %s", m.file, name, problem)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
			m.t.Errorf("%s: %s has no memory limit, or no CPU request", m.file, name)
		}
	}
	for v := range volumes {
		m.t.Errorf("%s: %s does not mount its volume %s", m.file, name, v)
	}
}

// restricted returns the violations of the Pod Security Standard "restricted", which the namespace enforces.
// https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
func restricted(pod *corev1.PodSpec, c *corev1.Container) (problems []string) {
	want := func(ok bool, what string) {
		if !ok {
			problems = append(problems, "want "+what)
		}
	}
	ps, cs := pod.SecurityContext, c.SecurityContext
	want(ps != nil && cs != nil, "a securityContext")
	if ps == nil || cs == nil {
		return problems
	}
	isTrue := func(b *bool) bool { return b != nil && *b }
	want(isTrue(ps.RunAsNonRoot), "runAsNonRoot")
	want(ps.SeccompProfile != nil && ps.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault, "seccompProfile RuntimeDefault")
	want(cs.AllowPrivilegeEscalation != nil && !*cs.AllowPrivilegeEscalation, "allowPrivilegeEscalation: false")
	want(cs.Capabilities != nil && fmt.Sprint(cs.Capabilities.Drop) == "[ALL]" && len(cs.Capabilities.Add) == 0, "all capabilities dropped")
	want(isTrue(cs.ReadOnlyRootFilesystem), "readOnlyRootFilesystem")
	for _, s := range ps.Sysctls {
		want(s.Name == "net.ipv4.ip_unprivileged_port_start", "no sysctl that is not safe, such as "+s.Name)
	}
	for _, p := range c.Ports {
		unprivileged := len(ps.Sysctls) > 0
		want(p.ContainerPort >= 1024 || unprivileged, "net.ipv4.ip_unprivileged_port_start for a port below 1024")
	}
	for _, v := range pod.Volumes {
		want(v.HostPath == nil, "no hostPath")
	}
	return problems
}

// TestStrict checks that the decoder refuses an unknown field.
func TestStrict(t *testing.T) {
	data, err := os.ReadFile("../kubernetes/one-node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	service := strings.Split(string(data), "\n---\n")[1]
	if _, _, err := decoder.Decode([]byte(service), nil, nil); err != nil {
		t.Error(err)
	}
	if _, _, err := decoder.Decode([]byte(strings.Replace(service, "targetPort", "targetport", 1)), nil, nil); err == nil {
		t.Error("Decode = nil with a field targetport, want an error")
	}
}
