// Command catalog is the HTTP service of the shop that lists its items with their stock. EDITION
// names the copy that answers, so that a laptop with EDITION=laptop can be told from the cluster.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	stockv1 "github.com/detour-dev/detour/rpc/examples/stock/v1"
)

type item struct {
	Name  string `json:"name"`
	Price string `json:"price"`
	Stock uint32 `json:"stock"`
}

type answer struct {
	Edition  string `json:"edition"`
	ServedBy string `json:"served_by"`
	Stock    string `json:"stock_from"`
	Items    []item `json:"items"`
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func main() {
	edition, host := env("EDITION", "cluster"), env("HOSTNAME", "laptop")
	address := env("STOCK_ADDR", "stock.shop:9090")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	stock := stockv1.NewStockServiceClient(conn)
	prices := map[string]string{"teapot": "12.00", "kettle": "30.00"}
	if edition != "cluster" {
		prices["kettle"] = "9.99 (new price, being debugged)"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		a := answer{Edition: edition, ServedBy: host}
		for _, name := range []string{"teapot", "kettle"} {
			c, err := stock.Count(ctx, &stockv1.CountRequest{Item: name})
			if err != nil {
				http.Error(w, "stock: "+err.Error(), http.StatusBadGateway)
				return
			}
			a.Stock = c.ServedBy
			a.Items = append(a.Items, item{Name: name, Price: prices[name], Stock: c.Count})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	server := &http.Server{Addr: env("LISTEN", ":8080"), Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(ending)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed { //nolint:errorlint // never wrapped
		log.Fatal(err)
	}
	<-done
}
