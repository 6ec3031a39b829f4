package main

import (
	"fmt"
	"strings"
)

// node is where all that is measured runs, so that two services differ in nothing but the agent.
const node = "node2"

const catalog = `command: [/catalog], env: [{name: STOCK_ADDR, value: "stock.bench:9090"}]`

// manifests are the services that are measured, in pairs: the "direct" ones never get an agent, the
// "target" ones are intercepted.
var manifests = "{apiVersion: v1, kind: Namespace, metadata: {name: " + namespace + "}}\n" +
	service("direct", "bench", "args: [serve]", port{"http", 80, 8080}, port{"bulk", 9000, 9000}) +
	service("target", "bench", "args: [serve]", port{"http", 80, 8080}, port{"bulk", 9000, 9000}) +
	service("catalog-direct", "shop", catalog, port{"http", 80, 8080}) +
	service("catalog-target", "shop", catalog, port{"http", 80, 8080}) +
	// What the raw stream of out.upgrade is dialled to.
	"---\n{apiVersion: v1, kind: Service, metadata: {name: traffic-manager, namespace: " + namespace + "}, " +
	"spec: {selector: {app: direct}, ports: [{name: tunnel, port: 8081, targetPort: http}]}}\n" +
	service("stock", "shop", "command: [/stock]", port{"grpc", 9090, 9090})

type port struct {
	name               string
	service, container int
}

// service is a Deployment of one pod and its Service, as YAML.
func service(name, image, program string, ports ...port) string {
	var own, outside []string
	for _, p := range ports {
		own = append(own, fmt.Sprintf("{name: %s, containerPort: %d}", p.name, p.container))
		outside = append(outside, fmt.Sprintf("{name: %s, port: %d, targetPort: %s}", p.name, p.service, p.name))
	}
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeName: %[3]s
      terminationGracePeriodSeconds: 0
      containers:
        - {name: main, image: "detour.local/%[4]s:dev", imagePullPolicy: IfNotPresent, %[5]s, ports: [%[6]s],
           readinessProbe: {tcpSocket: {port: %[7]s}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: %[2]s}
spec: {selector: {app: %[1]s}, ports: [%[8]s]}
`, name, namespace, node, image, program, strings.Join(own, ", "), ports[0].name, strings.Join(outside, ", "))
}
