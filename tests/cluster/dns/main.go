// CoreDNS with the plugins that a cluster's DNS needs, and no others: the clouds' clients triple the time of a build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
)

// The order in which a query passes the plugins.
func init() {
	dnsserver.Directives = []string{"bind", "errors", "log", "hosts", "kubernetes"}
}

func main() {
	coremain.Run()
}
