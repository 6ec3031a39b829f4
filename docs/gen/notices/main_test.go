package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKindOfALicense(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"Apache":           {text: "Apache License\n      Version 2.0, January 2004", want: "Apache-2.0"},
		"MIT, wrapped":     {text: "Permission is hereby granted,\nfree of charge, to any person", want: "MIT"},
		"BSD":              {text: "Redistribution and use in source and binary forms, with or without", want: "BSD"},
		"an unknown text":  {text: "All rights reserved.", want: ""},
		"GPL is not known": {text: "GNU GENERAL PUBLIC LICENSE Version 3", want: ""},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, kind(c.text)) })
	}
}

func TestEqualTextsAreWrittenOnce(t *testing.T) {
	texts := map[string][]string{}
	for _, owner := range []string{"b v1", "a v1", "a v1"} {
		add(texts, clean("text \r\n"), owner)
	}
	var page strings.Builder
	require.NoError(t, write(&page, texts))
	require.Equal(t, 1, strings.Count(page.String(), "\ntext\n"))
	require.Contains(t, page.String(), "a v1\nb v1\n")
}
